/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * How the arbiter parks and is woken, as a model for spin. The steps have the names that they have in
 * csrc/protocol/park.hpp (P, L, R, D), src/launcher.rs (C, D, S) and src/pacer.rs (T). tests/model/run.sh checks it, and checks
 * that each planted mistake below is found.
 *
 * What is modelled: one arbiter, whose launches use credits 0, 1, 2, ... in order, each waiting for its door; device ends,
 * which publish by exchanging a readiness word that carries a park bit; host ends, which publish by a store and look at
 * `parked` behind a fence; a launcher that clears doors, publishes credits and enqueues them; optionally residency ends, launches
 * that leave closed (their share is overdrawn: nobody rings, the launcher opens the next door in its own time), a pacer and a stop
 * at any moment. A readiness word stands for records pushed, or for slots given back: both are news.
 *
 * Memory: a plain store goes into a buffer and reaches memory at any later moment, in any order with other words, unless
 * its thread waits at a fence. An exchange acts on memory at once, on its word alone. Loads read memory; where the code
 * needs an acquire, the planted mistake moves the load before what it must follow.
 *
 * What is demanded: when nothing can move any more, every piece of news was seen by the arbiter (delivery: with the pacer
 * off nothing else would ever mend it), nobody is blocked who should not be, and after a stop every credit has run.
 */

#define DOORS 2  /* the code has sixteen */
#ifndef DEVICE_ENDS
#define DEVICE_ENDS 1 /* up to two */
#endif
#ifndef HOST_ENDS
#define HOST_ENDS 1 /* up to one */
#endif
#ifndef PUSHES
#define PUSHES 1 /* of each end */
#endif

/* Words written by plain stores. */
#define PARKED_DEVICE 0 /* arbiter -> device ends: 1 + the credit to ring for, 0 while it runs */
#define PARKED_HOST 1   /* the same for host ends, in pinned memory */
#define WANTED 2        /* arbiter -> launcher: credits below this one may begin without a ring */
#define CREDITS 3       /* launcher -> arbiter: credits whose doors are clear; a credit may be rung for before it is enqueued */
#define HOST_WORD 4     /* host end -> arbiter: readiness */
#define STOP 5          /* launcher -> arbiter */
#define ENQUEUED 6      /* launcher -> pacer: credits that the driver has or is about to have */
#define DUE 7           /* arbiter -> launcher: the credit below this one is due, when its time has come */
#define WORDS 8

byte memory[WORDS];
byte buffer[WORDS];
bit pending[WORDS];

#define STORE(w, x) atomic { buffer[w] = x; pending[w] = 1 }
#define FENCE(w) (pending[w] == 0)

bit door[DOORS];
byte word[2]; /* device readiness words: the index ... */
bit parked_bit[2]; /* ... and the park bit beside it */
byte queued; /* credits that the driver has taken */
byte begun;  /* credits that have begun to run */
byte ended;
byte seen[2];
byte seen_host;
byte ends_done;

active proctype memory_system() {
end:
    do
    :: d_step { pending[PARKED_DEVICE] -> memory[PARKED_DEVICE] = buffer[PARKED_DEVICE]; pending[PARKED_DEVICE] = 0 }
    :: d_step { pending[PARKED_HOST] -> memory[PARKED_HOST] = buffer[PARKED_HOST]; pending[PARKED_HOST] = 0 }
    :: d_step { pending[WANTED] -> memory[WANTED] = buffer[WANTED]; pending[WANTED] = 0 }
    :: d_step { pending[CREDITS] -> memory[CREDITS] = buffer[CREDITS]; pending[CREDITS] = 0 }
    :: d_step { pending[HOST_WORD] -> memory[HOST_WORD] = buffer[HOST_WORD]; pending[HOST_WORD] = 0 }
    :: d_step { pending[STOP] -> memory[STOP] = buffer[STOP]; pending[STOP] = 0 }
    :: d_step { pending[ENQUEUED] -> memory[ENQUEUED] = buffer[ENQUEUED]; pending[ENQUEUED] = 0 }
    :: d_step { pending[DUE] -> memory[DUE] = buffer[DUE]; pending[DUE] = 0 }
    od
}

/* The front end and the kernel. */
active proctype arbiter() {
    byte n = 0, i, old;
    bit news;
#ifdef RESIDENCY
    bit resided = 0;
#endif
#ifdef CLOSING
    byte closings = 0;
#endif
end_waiting:
    /* The front end lets the next credit begin. */
    atomic { (queued > n && door[n % DOORS]) -> begun = n + 1 };
    /* R0 awake */
    atomic {
        STORE(PARKED_DEVICE, 0);
        STORE(PARKED_HOST, 0)
    };
poll:
    /* Loads of a poll may miss what is new, so a launch may try to park whenever it likes. */
    if
    :: memory[STOP] -> goto leave
    :: atomic { seen[0] != word[0] -> seen[0] = word[0] }; goto poll
#if DEVICE_ENDS > 1
    :: atomic { seen[1] != word[1] -> seen[1] = word[1] }; goto poll
#endif
    :: atomic { seen_host != memory[HOST_WORD] -> seen_host = memory[HOST_WORD] }; goto poll
    :: goto park
#ifdef RESIDENCY
    :: !resided -> resided = 1; goto leave_wanted
#endif
#ifdef CLOSING
    :: closings < CLOSING -> closings++; goto leave_closed
#endif
    fi;
park:
    /* P1 is there a door to ring at? If not, poll on. */
#ifndef PLANT_NO_CREDIT_CHECK
    if
    :: memory[CREDITS] < n + 2 -> goto poll
    :: else
    fi;
#endif
    /* P2 announce */
    atomic {
        STORE(PARKED_DEVICE, n + 2);
#ifndef PLANT_HOST_ANNOUNCED_LATE
        STORE(PARKED_HOST, n + 2)
#endif
    };
    /* P3 fence */
#ifndef PLANT_NO_RELEASE
    FENCE(PARKED_DEVICE);
#endif
#ifndef PLANT_NO_ARBITER_FENCE
    FENCE(PARKED_HOST);
#endif
    /* P4 mark every device word, and look at what was there */
    news = 0;
    i = 0;
    do
    :: i < DEVICE_ENDS ->
#ifdef PLANT_LOOK_THEN_MARK
        old = word[i];
        parked_bit[i] = 1;
#else
        atomic { old = word[i]; parked_bit[i] = 1 };
#endif
        atomic {
#ifndef PLANT_NO_SECOND_LOOK
            if
            :: old != seen[i] -> news = 1; seen[i] = old
            :: else
            fi;
#endif
            old = 0;
            i++
        }
    :: else -> break
    od;
    /* P5 look at the host's words */
    atomic {
        i = 0;
        old = memory[HOST_WORD];
        if
        :: old != seen_host -> news = 1; seen_host = old
        :: else
        fi;
        old = 0
    };
#ifdef PLANT_HOST_ANNOUNCED_LATE
    STORE(PARKED_HOST, n + 2);
#endif
    /* P6 news is for the next launch, at once; without any, leave and do not open the next door */
    if
    :: atomic { news -> news = 0 }; goto leave_wanted
    :: else -> goto leave
    fi;
leave_wanted:
    /* L1 the next launch is wanted */
#ifndef PLANT_NO_WANTED
    STORE(WANTED, n + 2);
#endif
    /* L2 fence */
#ifndef PLANT_NO_WANTED_FENCE
    FENCE(WANTED);
#endif
    /* L3 open its door, if that is clear already; else the launcher will */
    if
    :: memory[CREDITS] >= n + 2 -> door[(n + 1) % DOORS] = 1
    :: else
    fi;
    goto leave;
leave_closed:
    skip;
#ifdef CLOSING
    /* D1 the next launch is due when the share allows it; nothing is announced, nobody rings */
#ifdef PLANT_CLOSED_UNTOLD
    skip;
#else
    STORE(DUE, n + 2);
#endif
#endif
leave:
    atomic { ended = n + 1; n++ };
    goto end_waiting
}

/* A device end: R1 exchange the readiness word; R2 if it carried the park bit, see which door; R3 ring. R1a, R1b: see bell.hpp. */
proctype device_end(byte me) {
    byte k = 0, p, early = 0;
    bit was_parked, rung = 0;
    do
    :: k < PUSHES ->
#ifdef EARLY_RING
        /* R1a before the exchange: what it says may be older than the bit. R1b rings in any case, before the exchange has acted
           or after it: too old a credit costs a launch that finds nothing */
        early = memory[PARKED_DEVICE];
        if
        :: early != 0 -> door[(early - 1) % DOORS] = 1; rung = 1
        :: true
        fi;
#endif
#ifdef PLANT_LOAD_EARLY
        p = memory[PARKED_DEVICE];
#endif
#ifdef PLANT_LOOK_BEFORE_PUSH
        was_parked = parked_bit[me];
        atomic { word[me]++; parked_bit[me] = 0 };
#else
        atomic { word[me]++; was_parked = parked_bit[me]; parked_bit[me] = 0 };
#endif
#ifdef EARLY_RING
        if
        :: early != 0 && !rung -> door[(early - 1) % DOORS] = 1
        :: else
        fi;
#endif
        if
        :: was_parked ->
#ifndef PLANT_LOAD_EARLY
            p = memory[PARKED_DEVICE];
#endif
            if
            :: p != 0 && p != early -> door[(p - 1) % DOORS] = 1
            :: else
            fi
        :: else
        fi;
        atomic { p = 0; early = 0; rung = 0; k++ }
    :: else -> break
    od;
    ends_done++
}

/* A host end: H1 store the readiness word; H2 fence; H3 look at `parked`; R3 ring. */
proctype host_end() {
    byte k = 0, p;
    do
    :: k < PUSHES ->
        STORE(HOST_WORD, k + 1);
#ifndef PLANT_NO_HOST_FENCE
        FENCE(HOST_WORD);
#endif
        p = memory[PARKED_HOST];
        if
        :: p != 0 -> door[(p - 1) % DOORS] = 1
        :: else
        fi;
        atomic { p = 0; k++ }
    :: else -> break
    od;
    ends_done++
}

/* The launcher: clears doors ahead, keeps credits enqueued, and at the end drains them. */
active proctype launcher() {
    byte c = 0, d;
#ifdef CLOSING
    byte let_in = 0; /* what DUE was when a door was last opened for it */
#endif
    memory[WANTED] = 1; /* the first launch is wanted */
end_launcher:
    do
    :: c < begun + DOORS ->
        /* C1 the last credit that used the door has begun: clear it */
#ifndef PLANT_CLEAR_LATE
        door[c % DOORS] = 0;
#endif
        /* C2 publish that it may be rung for */
        STORE(CREDITS, c + 1);
        /* C3 fence */
#ifndef PLANT_NO_CREDITS_FENCE
        FENCE(CREDITS);
#endif
#ifdef PLANT_CLEAR_LATE
        door[c % DOORS] = 0;
#endif
        atomic {
            /* C4 open the door if the arbiter wanted this launch already */
            if
            :: memory[WANTED] > c -> door[c % DOORS] = 1
            :: else
            fi;
            c++
        }
#ifdef CLOSING
    /* D2 its time has come, and its door has been cleared: open it. DUE is read once */
#if defined(PLANT_DUE_BEFORE_CLEAR)
    :: atomic { memory[DUE] > let_in -> let_in = memory[DUE] };
#elif defined(PLANT_DUE_READ_TWICE)
    :: memory[DUE] > let_in && memory[DUE] <= c ->
        let_in = memory[DUE];
#else
    :: atomic { memory[DUE] > let_in && memory[DUE] <= c -> let_in = memory[DUE] };
#endif
        door[(let_in - 1) % DOORS] = 1
#endif
    :: queued < c ->
#if defined(PACER) && !defined(PLANT_PUBLISH_LATE)
        /* Q1 (for the pacer alone) publish that it will be enqueued, before any driver call, which may wait for somebody's lock */
        STORE(ENQUEUED, queued + 1);
        FENCE(ENQUEUED);
#endif
        /* Q2 the driver takes the wait and the launch */
        queued++;
#ifdef PLANT_PUBLISH_LATE
        STORE(ENQUEUED, queued);
        FENCE(ENQUEUED);
#endif
#ifdef STOPPING
    :: true ->
        /* S1 stop, S2 fence */
        STORE(STOP, 1);
        FENCE(STOP);
        /* S3 open every door that has not opened yet */
#ifndef PLANT_NO_DRAIN
        d = begun;
        do
        :: d < queued -> door[d % DOORS] = 1; d++
        :: else -> break
        od;
#endif
        /* S4 wait until all have run */
        (ended == queued);
        break
#endif
    od
}

#ifdef PACER
/* The pacer: every tick it opens the doors of all credits that were enqueued and have not begun. Stores only. */
active proctype pacer() {
    byte ticks = 0, d, upto;
    do
    :: ticks < PACER ->
        /* T1 whatever the driver may be waiting behind must be known here */
        d_step { upto = memory[ENQUEUED]; d = begun; assert(upto >= queued) };
        do
        :: d < upto -> door[d % DOORS] = 1; d++ /* T2 */
        :: else -> break
        od;
        ticks++
    :: true -> break
    od
}
#endif

/* When nothing moves any more. */
active proctype monitor() {
    timeout;
    assert(ends_done == DEVICE_ENDS + HOST_ENDS);
#ifdef STOPPING
    assert(ended == queued);
#else
    assert(seen[0] == word[0] && seen[1] == word[1] && seen_host == memory[HOST_WORD]);
#endif
}

init {
#if DEVICE_ENDS > 0
    run device_end(0);
#endif
#if DEVICE_ENDS > 1
    run device_end(1);
#endif
#if HOST_ENDS > 0
    run host_end();
#endif
    skip
}
