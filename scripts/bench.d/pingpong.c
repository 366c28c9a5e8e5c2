/* pingpong serve PORT | pingpong ADDRESS PORT ROUNDS: one byte there and back over TCP; prints the median round trip in
 * microseconds. A client that does nothing else measures what a sleeping peer costs, too, as real ones are. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int compare(const void *one, const void *two)
{
    double a = *(const double *)one, b = *(const double *)two;
    return (a > b) - (a < b);
}

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1e6 + at.tv_nsec / 1e3;
}

static int fail(const char *what)
{
    perror(what);
    return 1;
}

static int serve(struct sockaddr_in *at)
{
    int yes = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)at, sizeof *at) || listen(listener, 8))
        return fail("listen");
    for (;;) {
        char byte;
        int peer = accept(listener, NULL, NULL);
        if (peer < 0)
            return fail("accept");
        setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        while (read(peer, &byte, 1) == 1 && write(peer, &byte, 1) == 1) {
        }
        close(peer);
    }
}

static int play(struct sockaddr_in *at, int rounds)
{
    int yes = 1, peer = socket(AF_INET, SOCK_STREAM, 0);
    double *took = calloc(rounds, sizeof *took);
    char byte = 'x';
    if (!took || connect(peer, (struct sockaddr *)at, sizeof *at))
        return fail("connect");
    setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    for (int round = 0; round < rounds; round++) {
        double begin = now();
        if (write(peer, &byte, 1) != 1 || read(peer, &byte, 1) != 1)
            return fail("exchange");
        took[round] = now() - begin;
    }
    qsort(took, rounds, sizeof *took, compare);
    printf("%.3f\n", took[rounds / 2]);
    free(took);
    return 0;
}

int main(int count, char **words)
{
    struct sockaddr_in at = {.sin_family = AF_INET};
    int serving = count == 3 && !strcmp(words[1], "serve");
    if (!serving && (count != 4 || inet_pton(AF_INET, words[1], &at.sin_addr) != 1 || atoi(words[3]) < 1)) {
        fprintf(stderr, "usage: pingpong serve PORT | pingpong ADDRESS PORT ROUNDS\n");
        return 2;
    }
    at.sin_port = htons(atoi(words[2]));
    return serving ? serve(&at) : play(&at, atoi(words[3]));
}
