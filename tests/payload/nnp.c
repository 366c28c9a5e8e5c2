/* Who it is after execve: the image has it setuid. */
#include <stdio.h>
#include <unistd.h>

int main(void)
{
    return printf("Effective uid: %u\n", geteuid()) < 0;
}
