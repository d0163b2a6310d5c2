// Threads that share the pieces of a step (team.c).

#ifndef MINILLM_TEAM_H
#define MINILLM_TEAM_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

typedef struct Team Team;

typedef struct {
    Team *team;
    uint64_t phase;  // the number of the last phase that it took part in, counted since the start
    uint64_t done;   // how many pieces are done when that phase is over
} Member;

typedef struct {
    // Works out piece i for `member`, into memory that nobody else writes.
    void (*compute)(void *job, int thread, int i);
    // Copies it to where all read it.
    void (*commit)(void *job, int thread, int i);
} Work;

Team *team_new(int size, int max_pieces);
void team_free(Team *team);
int team_size(const Team *team);

// Begins a job in the calling thread, which is thread 0; the others copy `job` (of `bytes` bytes,
// at most 256) and call `run` with the copy.
Member team_begin(Team *team, const void *job, size_t bytes);
// Takes part in every job as thread 1, 2, …, until team_stop.
void team_work(Team *team, int thread, void (*run)(Member *member, int thread, void *job));
void team_stop(Team *team);
// Waits until no other thread is at work on a job, however old.
void team_rest(Team *team);

// Takes part in the next phase: some of `pieces` pieces of work. Returns when all are done.
void team_phase(Member *member, int thread, void *job, Work work, int pieces);

#endif
