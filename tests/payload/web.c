/* A web server as small as the callers of the CRI need one: every GET is answered with 200, who answers and what it was
 * asked for.
 *   web TITLE PORT TEXT [PIDFILE]
 * TITLE becomes the command line that others see. IPv4 and IPv6. One client at a time; ends on TERM, INT and QUIT. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static void quit(int number)
{
    (void)number;
    _exit(0);
}

static int listening(int port)
{
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = in6addr_any};
    struct sockaddr_in any4 = {.sin_family = AF_INET, .sin_port = htons(port)};
    int on = 1, off = 0, fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
        if (!bind(fd, (void *)&any, sizeof any) && !listen(fd, 64))
            return fd;
        close(fd);
    }
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    return bind(fd, (void *)&any4, sizeof any4) || listen(fd, 64) ? -1 : fd;
}

static void answer(int client, const char *title, const char *text)
{
    struct timeval patience = {.tv_sec = 2};
    char asked[2048], host[128] = "", body[512], head[256];
    setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    ssize_t got = read(client, asked, sizeof asked - 1);
    asked[got > 0 ? got : 0] = 0;
    asked[strcspn(asked, "\r\n")] = 0;
    gethostname(host, sizeof host - 1);
    int size = snprintf(body, sizeof body, "%s %s\n", text, host);
    int first = snprintf(head, sizeof head,
                         "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", size);
    if (write(client, head, first) == first && write(client, body, size) == size)
        printf("%s: %s 200\n", title, asked), fflush(stdout);
    shutdown(client, SHUT_WR);
    while (read(client, asked, sizeof asked) > 0)
        ;
    close(client);
}

int main(int count, char **words)
{
    char seen[512];
    if (count < 4 || count > 5)
        return fprintf(stderr, "usage: web TITLE PORT TEXT [PIDFILE]\n"), 2;
    if (strcmp(words[0], words[1])) { /* once more, under its title */
        char *again[] = {words[1], words[1], words[2], words[3], words[4], NULL};
        ssize_t size = readlink("/proc/self/exe", seen, sizeof seen - 1);
        if (size > 0)
            seen[size] = 0, execv(seen, again);
        return perror("web: /proc/self/exe"), 1;
    }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, quit), signal(SIGINT, quit), signal(SIGQUIT, quit);
    int server = listening(atoi(words[2]));
    if (server < 0)
        return perror("web: listen"), 1;
    FILE *pid = count == 5 ? fopen(words[4], "w") : NULL;
    if (pid)
        fprintf(pid, "%d\n", getpid()), fclose(pid);
    printf("%s: listening on %s\n", words[1], words[2]), fflush(stdout);
    for (;;) {
        int client = accept4(server, NULL, NULL, SOCK_CLOEXEC);
        if (client >= 0)
            answer(client, words[1], words[3]);
    }
}
