// Threads that share the pieces of a step, and never wait for one that has been put aside.
//
// A step is a list of phases, each of some pieces. Every thread goes through the same list. In a
// phase, any thread that is free claims the next piece, computes it into memory of its own, and commits it:
// only the first to finish a piece copies it to where all read it. When no piece is left to claim,
// a thread waits for the others about as long as a piece takes, and then does their pieces itself.
// So a thread that the operating system has put aside, because another program wants its core,
// holds nobody up for longer than a piece; when it comes back, its result is too late and is
// dropped, and it runs through the list to where the others are. Between steps, threads sleep.

#include "team.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#include <windows.h>
typedef SRWLOCK Lock;
typedef CONDITION_VARIABLE Bell;
static void lock_init(Lock *lock, Bell *bell) {
    InitializeSRWLock(lock);
    InitializeConditionVariable(bell);
}
static void acquire(Lock *lock) { AcquireSRWLockExclusive(lock); }
static void release(Lock *lock) { ReleaseSRWLockExclusive(lock); }
static void await(Bell *bell, Lock *lock) { SleepConditionVariableSRW(bell, lock, INFINITE, 0); }
static void ring(Bell *bell) { WakeAllConditionVariable(bell); }
static int64_t now(void) {  // 100 ns
    LARGE_INTEGER ticks, per_second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&per_second);
    return (int64_t)((double)ticks.QuadPart * 1e9 / (double)per_second.QuadPart);
}
#else
#include <pthread.h>
#include <time.h>
typedef pthread_mutex_t Lock;
typedef pthread_cond_t Bell;
static void lock_init(Lock *lock, Bell *bell) {
    pthread_mutex_init(lock, NULL);
    pthread_cond_init(bell, NULL);
}
static void acquire(Lock *lock) { pthread_mutex_lock(lock); }
static void release(Lock *lock) { pthread_mutex_unlock(lock); }
static void await(Bell *bell, Lock *lock) { pthread_cond_wait(bell, lock); }
static void ring(Bell *bell) { pthread_cond_broadcast(bell); }
static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ll + time.tv_nsec;
}
#endif

#define MAX_JOB 256
#define LEAST_WAIT 5000  // ns, before the pieces of another thread are done again

struct Team {
    // Each in a cache line of its own. A claim is a phase's number, and which piece is next in it.
    _Alignas(64) _Atomic uint64_t claim;
    _Alignas(64) _Atomic uint64_t done;  // pieces, counted since the start
    _Alignas(
        64) _Atomic uint64_t *taken;  // of each piece: the last phase in which it was committed
    int size;

    _Alignas(64) Lock lock;  // of all below
    Bell bell;
    uint64_t jobs, phase, finished;  // how many jobs have begun, and where the last one did
    int at_work;                     // other threads
    bool stopped;
    unsigned char job[MAX_JOB];
    size_t job_bytes;
};

static void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

Team *team_new(int size, int max_pieces) {
    Team *team = NULL;
#if defined(_WIN32)
    team = _aligned_malloc(sizeof(Team), 64);
#else
    if (posix_memalign((void **)&team, 64, sizeof(Team))) team = NULL;
#endif
    if (!team) return NULL;
    memset(team, 0, sizeof(Team));
    team->size = size;
    team->taken = calloc((size_t)max_pieces, sizeof *team->taken);
    lock_init(&team->lock, &team->bell);
    if (!team->taken) {
        team_free(team);
        return NULL;
    }
    return team;
}

void team_free(Team *team) {
    free((void *)team->taken);
#if defined(_WIN32)
    _aligned_free(team);
#else
    free(team);
#endif
}

int team_size(const Team *team) { return team->size; }

Member team_begin(Team *team, const void *job, size_t bytes) {
    Member member = {team, atomic_load(&team->claim) >> 24, atomic_load(&team->done)};
    if (team->size > 1) {
        acquire(&team->lock);
        memcpy(team->job, job, bytes);
        team->job_bytes = bytes;
        team->jobs++;
        team->phase = member.phase;
        team->finished = member.done;
        ring(&team->bell);
        release(&team->lock);
    }
    return member;
}

void team_work(Team *team, int thread, void (*run)(Member *member, int thread, void *job)) {
    uint64_t seen = 0;
    _Alignas(64) unsigned char job[MAX_JOB];
    acquire(&team->lock);
    for (;;) {
        while (team->jobs == seen && !team->stopped) await(&team->bell, &team->lock);
        if (team->stopped) break;
        seen = team->jobs;
        memcpy(job, team->job, team->job_bytes);
        Member member = {team, team->phase, team->finished};
        team->at_work++;
        release(&team->lock);
        run(&member, thread, job);
        acquire(&team->lock);
        team->at_work--;
        ring(&team->bell);
    }
    release(&team->lock);
}

void team_stop(Team *team) {
    acquire(&team->lock);
    team->stopped = true;
    ring(&team->bell);
    release(&team->lock);
}

void team_rest(Team *team) {
    acquire(&team->lock);
    while (team->at_work) await(&team->bell, &team->lock);
    release(&team->lock);
}

// Returns the next piece of a phase, or −1 if none is left or the phase is over.
static int claim(Team *team, uint64_t phase, int pieces) {
    uint64_t at = atomic_load(&team->claim), next;
    do {
        if (at >> 24 > phase) return -1;
        next = at >> 24 < phase ? phase << 24 : at;  // the first to come opens the phase
        if ((int)(next & 0xffffff) >= pieces) return -1;
    } while (!atomic_compare_exchange_weak(&team->claim, &at, next + 1));
    return (int)(next & 0xffffff);
}

static void do_piece(Member *member, int thread, void *job, Work work, int i) {
    Team *team = member->team;
    work.compute(job, thread, i);
    uint64_t last = atomic_load(&team->taken[i]);
    if (last < member->phase &&
        atomic_compare_exchange_strong(&team->taken[i], &last, member->phase)) {
        work.commit(job, thread, i);
        atomic_fetch_add(&team->done, 1);
    }
}

void team_phase(Member *member, int thread, void *job, Work work, int pieces) {
    Team *team = member->team;
    member->phase++;
    member->done += (uint64_t)pieces;
    if (team->size == 1) {
        for (int i = 0; i < pieces; i++) {
            work.compute(job, thread, i);
            work.commit(job, thread, i);
        }
        return;
    }
    int64_t began = 0, took = LEAST_WAIT;
    for (int i; (i = claim(team, member->phase, pieces)) >= 0;) {
        began = now();
        do_piece(member, thread, job, work, i);
        took = now() - began;
    }
    int64_t until = now() + (took > LEAST_WAIT ? took : LEAST_WAIT);
    while (atomic_load(&team->done) < member->done) {
        for (int i = 0; i < 8; i++) pause_briefly();
        if (now() < until) continue;
        for (int i = 0; i < pieces && atomic_load(&team->done) < member->done; i++)
            if (atomic_load(&team->taken[i]) < member->phase)
                do_piece(member, thread, job, work, i);
    }
}
