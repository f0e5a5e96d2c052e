/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * How a stream module is granted steps, as a model for spin: that a grant is room. The steps have the names that they have in
 * csrc/protocol: grant.hpp (`credit_of`, `grantable`), scan.hpp (`take_news`), begin.hpp, gate_begin.hpp, gate_end.hpp and
 * `publish_read` in mailbox.hpp. tests/model/run.sh checks it, and checks that each planted mistake below is found.
 *
 * What is modelled: one module whose input holds STEPS records from the beginning; its gate, which takes a step that is granted
 * or, with AHEAD, one for which it sees room in the header; its output of SLOTS slots; a consumer, which tells the arbiter and the
 * header of each slot that it gives back; a scanner, which notes what the ends say; a server, which grants; and, with BEGINS, an
 * arbiter that leaves and begins anew from the headers at any moment, while the gate goes on.
 *
 * Memory: as in park.pml. A plain store reaches memory at any later moment, in any order with other words, unless its thread
 * waits at a fence; so a consumer that is kept from its core between two stores is among what is checked.
 *
 * What is demanded: nobody pushes into a slot that has not been read; no step that was taken finds no room; and when nothing can
 * move any more, every record was read.
 */

#ifndef SLOTS
#define SLOTS 2
#endif
#ifndef STEPS
#define STEPS 3
#endif
#ifndef BEGINS
#define BEGINS 0
#endif
#ifdef AHEAD
#define STEPS_AHEAD 1
#else
#define STEPS_AHEAD 0
#endif

/* Words written by plain stores. */
#define WRITE_IDX 0 /* the output's header: gate -> */
#define READ_IDX 1  /* the same: consumer -> */
#define WRITTEN 2   /* gate -> arbiter: records in the output */
#define CONSUMED 3  /* consumer -> arbiter: records taken from it */
#define ENDED 4     /* gate -> arbiter: `consumed` of the input, so steps that have ended */
#define GRANTED 5   /* arbiter -> gate */
#define SLOT 6      /* the slots: 1 + the index of the record */
#define WORDS (6 + SLOTS)

byte memory[WORDS];
byte buffer[WORDS];
bit pending[WORDS];

#define STORE(w, x) buffer[w] = x; pending[w] = 1
#define FENCE(w) (pending[w] == 0)
#define DELIVER(w) d_step { pending[w] -> memory[w] = buffer[w]; pending[w] = 0 }

byte read_up_to;  /* records that the consumer has read; nobody's to look at but the demands' */
byte known_written, known_consumed; /* working memory: `written`, `consumed` */
byte seen_written, seen_consumed;   /* what the scanner saw last */
byte early;                         /* `written` as the scanner loaded it before the headers were loaded */
bit has_early;
bit look;                           /* the module's look bit */
bit runs;                           /* the scanner may look: not while the arbiter is away */

active proctype memory_system() {
end:
    do
    :: DELIVER(WRITE_IDX)
    :: DELIVER(READ_IDX)
    :: DELIVER(WRITTEN)
    :: DELIVER(CONSUMED)
    :: DELIVER(ENDED)
    :: DELIVER(GRANTED)
    :: DELIVER(SLOT)
#if SLOTS > 1
    :: DELIVER(SLOT + 1)
#endif
    od
}

active proctype gate() {
    byte taken = 0; /* also the output's next index: each step pushes one record */
    do
    :: taken == STEPS -> break
    :: taken < STEPS ->
        /* gate_wait */
        if
        :: memory[GRANTED] > taken
        :: STEPS_AHEAD && taken < memory[READ_IDX] + SLOTS
        fi;
        /* gate_give */
#ifdef PLANT_ASK_HEADER
        assert(taken < memory[READ_IDX] + SLOTS);
#endif
        /* Whichever comes first, they are on their way together. */
        d_step {
            assert(taken < read_up_to + SLOTS);
            STORE(SLOT + taken % SLOTS, taken + 1);
            STORE(WRITE_IDX, taken + 1);
            STORE(WRITTEN, taken + 1)
        }
#ifndef PLANT_NO_FENCE_BEFORE_ENDED
        d_step {
            FENCE(WRITE_IDX) && FENCE(WRITTEN) && FENCE(SLOT + taken % SLOTS) -> STORE(ENDED, taken + 1)
        }
#else
        d_step { STORE(ENDED, taken + 1) }
#endif
        /* The next launch begins when the stores of this one are there. */
        d_step {
            FENCE(ENDED) && FENCE(WRITTEN) && FENCE(WRITE_IDX) && FENCE(SLOT + taken % SLOTS) -> taken++
        }
    od
}

active proctype consumer() {
    byte next = 0;
    do
    :: next == STEPS -> break
    :: next < STEPS ->
        (memory[SLOT + next % SLOTS] == next + 1); /* by its tag */
#ifdef PLANT_TELL_BEFORE_READING
        d_step { STORE(CONSUMED, next + 1) }
#endif
        /* publish_read: both are on their way when the record has been read. */
        d_step {
            read_up_to = next + 1;
            STORE(CONSUMED, next + 1);
            STORE(READ_IDX, next + 1);
            next++
        }
    od
}

/* scan_words and take_news. A slot given back sets the module's look bit: its output's, and its input's, for which it may have
 * waited with all of its credit on its way. */
active proctype scanner() {
    byte seen_ended = 0;
end:
    do
    :: d_step { runs && has_early ->
        has_early = 0;
        if
        :: early != seen_written ->
            seen_written = early;
#ifdef PLANT_GO_BACK
            known_written = early
#else
            known_written = (early > known_written -> early : known_written)
#endif
        :: else
        fi }
    :: d_step { runs && !has_early && memory[WRITTEN] != seen_written ->
        seen_written = memory[WRITTEN];
        known_written = (seen_written > known_written -> seen_written : known_written) }
    :: d_step { runs && memory[CONSUMED] != seen_consumed ->
        seen_consumed = memory[CONSUMED];
        known_consumed = (seen_consumed > known_consumed -> seen_consumed : known_consumed) };
        look = 1
#ifndef PLANT_ENDS_UNTOLD
    :: d_step { runs && memory[ENDED] != seen_ended -> seen_ended = memory[ENDED]; look = 1 }
#endif
    od
}

#define ROOM(written, consumed, settled) \
    ((written > consumed -> written - consumed : 0) + granted - (settled) < SLOTS -> \
    SLOTS - (written > consumed -> written - consumed : 0) - granted + (settled) : 0)

active proctype server() {
    byte granted = 0, begins = 0;
    short settled = 0, ended;
    byte known, written, consumed;
    short credit;
    bit is_settled = 1; /* false: `handler` says that nothing is known */
    look = 1;
    runs = 1;
end:
    do
    :: look && granted < STEPS ->
        look = 0; /* ACQUIRE of mark: what follows is loaded after it */
        /* grantable: credit_of what is known */
        known = known_written;
        d_step {
            consumed = known_consumed;
            credit = (is_settled -> ROOM(known, consumed, settled) : 0)
        };
        if
        :: (credit == 0 && (!is_settled || settled != granted)) || (STEPS_AHEAD && credit < STEPS - granted) ->
            /* Once more, with what the ends say now. */
#ifdef PLANT_WRITTEN_BEFORE_ENDED
            known = known_written;
            written = memory[WRITTEN];
            ended = memory[ENDED];
#else
            ended = memory[ENDED];
            known = known_written;
            written = memory[WRITTEN];
#endif
            d_step {
                consumed = known_consumed;
                credit = ROOM(written, consumed, ended);
#ifdef PLANT_SETTLED_TOO_SOON
                settled = ended;
                is_settled = 1
#else
                if
                :: known == written -> settled = ended; is_settled = 1
                :: else
                fi
#endif
            }
        :: else
        fi;
        d_step {
            credit = (credit < STEPS - granted -> credit : STEPS - granted);
            if
            :: credit > 0 -> granted = granted + credit; STORE(GRANTED, granted)
            :: else
            fi;
            credit = 0;
            known = 0;
            written = 0;
            consumed = 0;
            ended = 0
        }
    /* Leaves, and begins anew from the headers. */
    :: !look && begins < BEGINS ->
        d_step { begins++; runs = 0 };
        d_step { FENCE(GRANTED) -> early = memory[WRITTEN]; has_early = 1 };
        known_written = memory[WRITE_IDX];
        consumed = memory[READ_IDX];
        known_consumed = (memory[CONSUMED] > consumed -> memory[CONSUMED] : consumed);
        d_step { seen_written = known_written; seen_consumed = known_consumed; consumed = 0 };
#ifdef PLANT_BEGIN_SETTLED
        d_step { settled = memory[ENDED]; is_settled = 1 };
#else
        d_step { settled = 0; is_settled = 0 };
#endif
        d_step { look = 1; runs = 1 }
    od
}
