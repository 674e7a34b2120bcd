/* Faults inside of a process, preloaded into the stages by tests/src/faults/shim.rs.
 *
 * SHIM_STAGE names the stage that is meant; the others run as they are.
 * SHIM_CLOCK_MS is added to the time of day that the process is told.
 * SHIM_HANG names a file: when it appears, it is removed and the thread of the stage's name stands still for ever.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long long shift_ms;
static const char *stage, *hang;

int clock_gettime(clockid_t clock, struct timespec *now) {
  int outcome = (int)syscall(SYS_clock_gettime, clock, now);
  if (outcome == 0 && shift_ms != 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
    long long ns = now->tv_nsec + (shift_ms % 1000) * 1000000;
    now->tv_sec += shift_ms / 1000 + (ns < 0 ? -1 : ns / 1000000000);
    now->tv_nsec = ns < 0 ? ns + 1000000000 : ns % 1000000000;
  }
  return outcome;
}

static void stand_still(int signal) {
  (void)signal;
  for (;;) pause();
}

/* Oldest thread of this process with the stage's name: its engine; 0 without one. */
static pid_t engine(void) {
  pid_t found = 0;
  DIR *tasks = opendir("/proc/self/task");
  for (struct dirent *task; tasks != NULL && (task = readdir(tasks)) != NULL;) {
    char path[300], name[32] = "";
    snprintf(path, sizeof path, "/proc/self/task/%s/comm", task->d_name);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) continue;
    ssize_t length = read(file, name, sizeof name - 1);
    close(file);
    pid_t id = (pid_t)atoi(task->d_name);
    if (length < 1) continue;
    name[length - 1] = 0;
    /* The first thread has the name of the program; those that the engine made have the engine's, and are younger. */
    if (id != getpid() && strcmp(name, stage) == 0 && (found == 0 || id < found)) found = id;
  }
  if (tasks != NULL) closedir(tasks);
  return found;
}

static void *wait_for_file(void *nothing) {
  for (;;) {
    usleep(2000);
    pid_t thread = access(hang, F_OK) == 0 ? engine() : 0;
    if (thread != 0 && unlink(hang) == 0) syscall(SYS_tgkill, getpid(), thread, SIGUSR2);
  }
  return nothing;
}

__attribute__((constructor)) static void begin(void) {
  char line[4096] = "", wanted[64];
  stage = getenv("SHIM_STAGE");
  int file = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
  ssize_t length = file < 0 ? 0 : read(file, line, sizeof line - 1);
  if (file >= 0) close(file);
  if (stage == NULL || length <= 0) return;
  for (ssize_t i = 0; i < length; i++)
    if (line[i] == 0) line[i] = ' ';
  snprintf(wanted, sizeof wanted, " stage %s ", stage);
  if (strstr(line, wanted) == NULL) return;
  const char *clock = getenv("SHIM_CLOCK_MS");
  if (clock != NULL) shift_ms = atoll(clock);
  hang = getenv("SHIM_HANG");
  pthread_t thread;
  if (hang != NULL) {
    signal(SIGUSR2, stand_still);
    pthread_create(&thread, NULL, wait_for_file, NULL);
  }
}
