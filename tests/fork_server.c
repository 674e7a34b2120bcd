/* Starts a program that links many libraries at a fraction of the price: linked once, forked for each start.
 *
 * Built twice by tests/run.sh. With -shared -DSERVER: preloaded into the program, which then never begins by itself. It waits
 * at FORK_SERVER_SOCKET, all libraries linked, and each client gets a fork of it with the client's arguments, environment, folder
 * and standard streams. Without: the client, which takes the program's place in PATH. It ends as its fork does, and a fork
 * whose client is gone is killed. Where there is no server, the client becomes the program itself.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* Longest folder, arguments and environment together: most that one message of such a socket holds. */
enum { MOST = 160 * 1024, STREAMS = 3 };

static int address(struct sockaddr_un *to, const char *path) {
  *to = (struct sockaddr_un){.sun_family = AF_UNIX};
  if (path == NULL || strlen(path) >= sizeof to->sun_path) return -1;
  strcpy(to->sun_path, path);
  return socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
}

extern char **environ;

/* Message of a client: number of arguments, folder, arguments, environment; with it its standard streams. */
union streams {
  char bytes[CMSG_SPACE(STREAMS * sizeof(int))];
  struct cmsghdr aligned;
};

#ifdef SERVER

typedef int program(int, char **, char **);
typedef int start(program *, int, char **, void (*)(void), void (*)(void), void (*)(void), void *);

/* What libc begins a program with. */
struct beginning {
  start *libc;
  program *main;
  void (*init)(void), (*fini)(void), (*rtld_fini)(void);
  void *stack;
};

/* Becomes the program that a client asks for, in a fork of its own. Returns in neither of the two processes. */
static void answer(const struct beginning *b, int client) {
  static char text[MOST];
  union streams streams;
  struct iovec part = {text, sizeof text};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = streams.bytes, .msg_controllen = sizeof streams};
  ssize_t length = recvmsg(client, &message, 0);
  struct cmsghdr *passed = CMSG_FIRSTHDR(&message);
  int count, stream[STREAMS], words = 0;
  if (length <= (ssize_t)sizeof count || passed == NULL || text[length - 1] != 0) _exit(126);
  memcpy(&count, text, sizeof count);
  memcpy(stream, CMSG_DATA(passed), sizeof stream);
  /* Arguments, a null, environment, a null: as a kernel leaves them. */
  static char *word[MOST / 2];
  char *folder = text + sizeof count;
  for (char *at = folder + strlen(folder) + 1; at < text + length; at += strlen(at) + 1) {
    word[words++] = at;
    if (words == count) word[words++] = NULL;
  }
  pid_t self = getpid(), child = fork();
  if (child == 0) {
    /* Dies with who waits for it. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != self || chdir(folder) != 0) _exit(126);
    for (int i = 0; i < STREAMS; i++) dup2(stream[i], i);
    for (int i = 0; i < STREAMS; i++) close(stream[i]);
    close(client);
    environ = word + count + 1;
    exit(b->libc(b->main, count, word, b->init, b->fini, b->rtld_fini, b->stack));
  }
  struct pollfd ends[] = {{.fd = (int)syscall(SYS_pidfd_open, child, 0), .events = POLLIN}, {.fd = client, .events = 0}};
  for (int i = 0; i < STREAMS; i++) close(stream[i]);
  if (ends[0].fd >= 0) poll(ends, 2, -1);
  if (ends[1].revents != 0) kill(child, SIGKILL);
  int status = 0;
  waitpid(child, &status, 0);
  send(client, &status, sizeof status, MSG_NOSIGNAL);
  _exit(0);
}

int __libc_start_main(program *main, int argc, char **argv, void (*init)(void), void (*fini)(void), void (*rtld_fini)(void),
                      void *stack) {
  start *libc = (start *)dlsym(RTLD_NEXT, "__libc_start_main");
  struct beginning b = {libc, main, init, fini, rtld_fini, stack};
  struct sockaddr_un at;
  int server = address(&at, getenv("FORK_SERVER_SOCKET"));
  if (server < 0) return libc(main, argc, argv, init, fini, rtld_fini, stack);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  signal(SIGCHLD, SIG_IGN);
  if (bind(server, (struct sockaddr *)&at, sizeof at) != 0 || listen(server, 64) != 0) {
    perror("fork_server");
    _exit(1);
  }
  for (;;) {
    int client = accept4(server, NULL, NULL, SOCK_CLOEXEC);
    if (client >= 0 && fork() == 0) {
      signal(SIGCHLD, SIG_DFL);
      close(server);
      answer(&b, client);
    }
    if (client >= 0) close(client);
  }
}

#else

static size_t add(char *text, size_t at, const char *word) {
  size_t length = word == NULL ? MOST : strlen(word) + 1;
  if (at + length <= MOST) memcpy(text + at, word, length);
  return at + length;
}

int main(int argc, char **argv) {
  static char text[MOST], folder[4096];
  struct sockaddr_un to;
  int server = address(&to, FORK_SERVER_SOCKET);
  size_t length = sizeof argc;
  memcpy(text, &argc, length);
  length = add(text, length, getcwd(folder, sizeof folder));
  for (char **word = argv; *word != NULL; word++) length = add(text, length, *word);
  for (char **word = environ; *word != NULL; word++) length = add(text, length, *word);
  if (length > MOST || server < 0 || connect(server, (struct sockaddr *)&to, sizeof to) != 0) {
    execv(PROGRAM, argv);
    perror(PROGRAM);
    return 127;
  }
  union streams streams = {0};
  struct iovec part = {text, length};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = streams.bytes, .msg_controllen = sizeof streams};
  struct cmsghdr *passed = CMSG_FIRSTHDR(&message);
  passed->cmsg_level = SOL_SOCKET;
  passed->cmsg_type = SCM_RIGHTS;
  passed->cmsg_len = CMSG_LEN(STREAMS * sizeof(int));
  memcpy(CMSG_DATA(passed), (int[]){0, 1, 2}, STREAMS * sizeof(int));
  int status = 0;
  if (sendmsg(server, &message, MSG_NOSIGNAL) < 0 || recv(server, &status, sizeof status, 0) != sizeof status) {
    fprintf(stderr, "fork_server: the server of %s is gone\n", PROGRAM);
    return 126;
  }
  if (WIFSIGNALED(status)) {
    signal(WTERMSIG(status), SIG_DFL);
    raise(WTERMSIG(status));
  }
  return WEXITSTATUS(status);
}

#endif
