"""One engine for all calls: continuous batching within a budget of memory.

Every step is one pass over the layers for everybody: each running answer's next row (and the rows
of its guesses), and a bounded number of rows of prompts, in the order of arrival. Nobody's bits
depend on it: a row of the pass is computed by its own coordinates (kernels/NUMERICS.md, section 1).

- **Who computes**: the threads that wait for their answers, one at a time (`leading`). Coroutines
  have none to give: while any of them waits, one thread drives for all of them.
- **Admission** in the order of arrival, by memory and number. Who can never fit is refused at once;
  who does not fit now waits; beyond a bound of those who wait, calls are refused as overloaded.
- **Ends**: a caller who leaves, for whatever reason, frees his sequence at the next step. An error
  belongs to the sequence that it is about.
- **Slow readers** are passed over while too much text waits for them, and give up their place when
  somebody else could use it; afterwards they go on from the prefix cache, or compute anew.

What the leader alone touches: `_running`, `_waiting`, `_prefixes` and every `Running` in them.
What all share, under the lead's mutex: `_calls`, `_arrivals`, `_pump`.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable

from isonomy import kernels
from isonomy.sdk.errors import BackendError, IsonomyError

from . import faults
from .drafts import Pace
from .errors import BACKEND, Corrupt, NonFinite, Overloaded, TooLarge
from .leading import Follower, Lead
from .prefix import LEAST, PrefixCache, common
from .sequence import Running, Work

UNDELIVERED = 64
"""Pieces of text that may wait for a caller before his sequence is passed over."""

AHEAD_SECONDS = 0.03
"""Steps that take so long together may be one call of the library while nobody waits to be let in.

Between two of them Python's memory has left the processor's caches, and costs ten times as much as
when it is warm; whoever arrives or leaves meanwhile waits so long at most.
"""

MOST_AHEAD = 7
"""Steps after the first in one call of the library."""

SPECULATING = 4
"""Decoding sequences above which nobody's draft is asked: rows are then well used already."""

GUESSED_BYTES = 64 << 20
"""Of logits at most, for the rows of certain guesses in one pass."""


class Call:
    """A sequence, whoever waits for it, and whether that is a coroutine."""

    __slots__ = ("coroutine", "sequence", "thread", "wake")

    def __init__(self, sequence: Running, wake: Callable[[], None], *, coroutine: bool) -> None:
        self.sequence, self.wake, self.coroutine = sequence, wake, coroutine
        self.thread = threading.get_ident()


class Engine:
    """Drives `Decoder.step` for all calls on one decoder.

    Args:
        decoder: The model.
        cache_bytes: Memory for all key-value caches, the prefix cache's included.
        max_running: Most sequences that are computed at a time.
        max_waiting: Most calls beyond these; one more is refused.
        prompt_chunk: Most rows of prompts in one pass.
        prefix_cache_bytes: Of `cache_bytes` at most, for sequences that have ended.
        clock: Seconds.
        most_ahead: Most steps beyond one in a call of the library while there is nobody else.
    """

    def __init__(
        self,
        decoder: kernels.Decoder,
        *,
        cache_bytes: int,
        max_running: int,
        max_waiting: int,
        prompt_chunk: int,
        prefix_cache_bytes: int,
        clock: Callable[[], float],
        most_ahead: int = MOST_AHEAD,
    ) -> None:
        self._decoder = decoder
        self._cache_bytes = cache_bytes
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._chunk = prompt_chunk
        self._certain = max(1, GUESSED_BYTES // (4 * decoder.config.vocab))
        self._clock = clock
        self._most_ahead = most_ahead
        self._lead = Lead(after_fork=self._forked)
        self._numbers = itertools.count()
        self._calls: dict[Running, Call] = {}
        self._coroutines: set[Running] = set()
        self._arrivals: list[Running] = []
        self._pump: Follower | None = None
        self._waiting: list[Running] = []
        self._running: list[Running] = []
        self._prefixes = PrefixCache(min(prefix_cache_bytes, cache_bytes))
        self._torn = False  # a step began, and its results are not all taken
        self._ended = False  # somebody may be over
        self._outside = 0.0
        self._pace = AHEAD_SECONDS  # seconds of a step of those who only decode

    # Callers

    def run(self, sequence: Running, on_text: Callable[[str], None] | None = None) -> None:
        """Drive until the sequence has finished; `on_text` is called in this thread.

        Raises:
            TooLarge: it can never fit into the cache.
            Overloaded: too many calls wait already.
            NonFinite: a hidden state or logit became infinite or NaN.
            BackendError: the kernels refused a step.
        """
        follower = Follower()
        call = Call(sequence, lambda: self._lead.wake(follower), coroutine=False)
        try:
            self._submit(call)
            while not self._deliver(sequence, follower, on_text):
                if not self._lead.claim(follower) or not self._drive(
                    follower, lambda: sequence.finished or sequence.undelivered > 0
                ):
                    follower.wait()
        finally:
            try:
                self._leave(call, follower)
            except BaseException:  # an interrupt: all others would wait for ever
                self._leave(call, follower)
                raise
        if sequence.error is not None:
            raise sequence.error

    async def arun(self, sequence: Running, on_text: Callable[[str], None] | None = None) -> None:
        """Like `run`, without blocking the loop; `on_text` is called on it.

        Cancelling the awaiting task gives the sequence up.
        """
        import asyncio

        loop = asyncio.get_running_loop()
        woken = asyncio.Event()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(woken.set)
            except RuntimeError:  # the loop was closed, and nobody waits any more
                self._forget(sequence)

        follower = Follower()
        call = Call(sequence, wake, coroutine=True)
        try:
            self._submit(call)
            while not self._deliver(sequence, follower, on_text):
                await woken.wait()
                woken.clear()
        finally:
            try:
                self._leave(call, follower)
            except BaseException:  # an interrupt: all others would wait for ever
                self._leave(call, follower)
                raise
        if sequence.error is not None:
            raise sequence.error

    def close(self) -> None:
        """Forget what is kept of sequences that have ended, now and from now on."""
        with self._lead.held():
            self._prefixes = PrefixCache(0)

    def _submit(self, call: Call) -> None:
        sequence = call.sequence
        needed = sequence.reserved = self._needed(sequence)
        if needed > self._cache_bytes:
            raise TooLarge(sequence.prompted, sequence.budget, needed, self._cache_bytes)
        with self._lead.mutex:
            if len(self._calls) >= self._max_running + self._max_waiting:
                raise Overloaded(self._max_running, self._max_waiting)
            sequence.number = next(self._numbers)
            sequence.submitted = self._clock()
            self._calls[sequence] = call
            self._arrivals.append(sequence)
            if call.coroutine:
                self._coroutines.add(sequence)
            self._changed()

    def _deliver(
        self, sequence: Running, follower: Follower, on_text: Callable[[str], None] | None
    ) -> bool:
        """Hand on the text that is there; true when the sequence has finished.

        Nobody waits for this caller meanwhile: he neither leads nor is about to.
        """
        finished = sequence.finished  # asked before looking for text: none is left behind
        if on_text is not None and sequence.undelivered:
            self._lead.release(follower)
            given = sequence.answer.given
            parked = False
            while sequence.delivered < len(given):
                parked = parked or sequence.undelivered >= UNDELIVERED
                piece = given[sequence.delivered]
                sequence.delivered += 1
                on_text(piece)
            if parked:
                self._changed()
        return finished

    def _leave(self, call: Call, follower: Follower) -> None:
        with self._lead.mutex:
            self._forget(call.sequence)
            self._lead.release(follower)
            self._changed()
            if not self._lead.claim(follower, queue=False):
                return  # whoever leads sweeps before his next step, or after his last
        self._let_go(follower)

    def _forget(self, sequence: Running) -> None:
        sequence.given_up = True
        self._ended = True
        with self._lead.mutex:
            self._calls.pop(sequence, None)
            self._coroutines.discard(sequence)

    def _changed(self) -> None:
        """Let whoever drives look for work again; coroutines get a thread that drives for them."""
        with self._lead.mutex:
            self._lead.changed()
            if self._coroutines and self._pump is None:
                follower = Follower()
                drive = self._drive_for_coroutines
                threading.Thread(target=drive, args=(follower,), name=BACKEND).start()
                self._pump = follower

    # Driving

    def _drive(self, follower: Follower, until: Callable[[], bool]) -> bool:
        """Lead until there is something else to do; false: nothing at all, wait for a change."""
        try:
            while not until() and not self._lead.wanted:
                seen = self._lead.changes
                if not self._step() and self._lead.rest(follower, seen):
                    return False
        finally:
            if self._lead.is_led_by(follower):
                self._let_go(follower)
        return True

    def _drive_for_coroutines(self, follower: Follower) -> None:
        """Drive until no coroutine waits, or there is nothing to do before something changes."""
        try:
            while True:
                with self._lead.mutex:
                    if not self._coroutines:
                        self._stop_pump(follower)
                        return
                if not self._lead.claim(follower):
                    follower.wait()
                elif not self._drive(follower, lambda: not self._coroutines):
                    with self._lead.mutex:
                        if self._lead.rests(follower):  # else it was woken in the meantime
                            self._stop_pump(follower)
                            return
        except BaseException as error:
            message = f"the engine failed: {error!r}. Please report it."
            with self._lead.mutex:
                self._stop_pump(follower)
                for sequence in list(self._coroutines):
                    self._fail(sequence, BackendError(message, backend=BACKEND))
            raise

    def _stop_pump(self, follower: Follower) -> None:
        if self._pump is follower:  # in a forked child it is not
            self._pump = None
        self._lead.release(follower)

    def _let_go(self, follower: Follower) -> None:
        """Lead and wait no longer, and leave nobody in who is over."""
        while self._lead.is_led_by(follower):
            seen = self._lead.changes
            self._sweep()
            with self._lead.mutex:
                if seen == self._lead.changes:
                    self._lead.release(follower)
        self._lead.release(follower)

    def _step(self) -> bool:
        """Compute one pass for everybody; false when there is nothing to compute."""
        began = self._clock()
        self._sweep()
        self._torn = True
        self._admit()
        works = self._plan()
        before = self._clock()
        if works:
            results = self._compute(works)
            after = self._clock()
            self._pace = (after - before) / (1 + max(work.item.ahead for work in works))
            self._outside += before - began
            for fault in faults.report():
                for work in works:
                    work.sequence.faults.append(fault)
            for work, result in zip(works, results, strict=True):
                self._take(work, result, after, len(works))
            self._outside += self._clock() - after
        self._torn = False
        return bool(works)

    def _plan(self) -> list[Work]:
        """Say what each computes next: a row if it decodes, and of the rest so much as is allowed.

        Prompts, and answers that are known already, share the rows of one chunk in the order of
        arrival; those who decode never wait for them.
        """
        works: list[Work] = []
        rows = self._chunk
        present = [other for other in self._running if other.undelivered < UNDELIVERED]
        most = Pace.MOST if len(present) <= SPECULATING else 0
        ahead = self._steps_ahead(present)
        reading: list[Running] = []
        for sequence in present:
            rest = sequence.rest
            certain = sequence.draft is not None and sequence.draft.certain
            if rest > 1:
                if rest > LEAST and not sequence.cold and self._catch_up(sequence, reading):
                    continue
                known = min(sequence.rest, rows)
                if not known:
                    continue
                reading.append(sequence)
                rows -= known
                guesses = 0
            else:
                known, guesses = 1, most
            if certain:
                guesses = min(rows, self._certain)
            try:
                work = sequence.work(known, guesses, ahead)
            except IsonomyError as error:  # its grammar gave up
                self._fail(sequence, error)
                continue
            if certain:
                rows -= work.guesses
            works.append(work)
        return works

    def _steps_ahead(self, present: list[Running]) -> int:
        """Return how many more steps than one this pass may take without looking at anybody."""
        if not self._most_ahead or self._waiting or self._arrivals:
            return 0
        for other in present:
            if not other.plain:
                return 0
        within = int(min(AHEAD_SECONDS / max(self._pace, 1e-9), 1 + self._most_ahead))
        return max(0, within - 1)

    def _catch_up(self, sequence: Running, reading: list[Running]) -> bool:
        """Take over what another has computed of the same tokens; true: wait, it computes more.

        `reading` are those whose prompts go on in this pass. Whoever waits for one of them goes on
        when that one has gone another way, or is gone.
        """
        ids, fed = sequence.buffer[: len(sequence.ids) - 1], sequence.fed
        best: Running | None = None
        most = fed + LEAST - 1
        for other in self._running:
            length = len(other.ids)
            if other is sequence or other.session is None or length <= most:
                continue
            if len(ids) <= most or other.buffer[most] != ids[most]:
                continue
            shared = common(other.buffer[:length], ids)
            if fed <= other.fed < shared and other in reading:
                return True
            if min(shared, other.fed) > most:
                best, most = other, min(shared, other.fed)
        if best is not None and best.session is not None:
            with contextlib.suppress(kernels.KernelError):  # then it computes them anew
                sequence.session = best.session.fork(sequence.capacity, most)
                sequence.fed = most
                sequence.cached += min(most, sequence.prompted) - min(fed, sequence.prompted)
        return False

    def _compute(self, works: list[Work]) -> list[kernels.StepsResult | kernels.KernelError]:
        """Compute one pass; where it fails as a whole, each alone: each fails for himself."""
        items = [work.item for work in works]
        try:
            return self._decoder.step(items)
        except kernels.KernelError as error:
            if len(items) == 1:
                return [error]
        results: list[kernels.StepsResult | kernels.KernelError] = []
        for item in items:
            try:
                results += self._decoder.step([item])
            except kernels.KernelError as error:
                results.append(error)
        return results

    def _take(
        self,
        work: Work,
        result: kernels.StepsResult | kernels.KernelError,
        now: float,
        batch: int,
    ) -> None:
        sequence = work.sequence
        if isinstance(result, kernels.KernelError):
            self._failed(work, result)
        else:
            try:
                sequence.take(work, result)
            except IsonomyError as error:  # its grammar gave up
                sequence.error = error
        sequence.batch = max(sequence.batch, batch)
        if work.draws and len(sequence.steps) and not sequence.began:
            sequence.began = now
            sequence.outside = self._outside
        if sequence.finished:
            self._ended = True
            sequence.ended = now
            sequence.outside = self._outside - sequence.outside
        elif not sequence.undelivered:
            return
        call = self._calls.get(sequence)
        if call is not None:
            call.wake()

    def _failed(self, work: Work, error: kernels.KernelError) -> None:
        """Try once more where that may help, or end the sequence."""
        sequence = work.sequence
        if work.guesses:  # plain decoding may never come to what the guesses ran into
            sequence.draft = None
        elif isinstance(error, kernels.OutOfMemoryError) and len(self._prefixes):
            self._prefixes.shrink(0)
        elif isinstance(error, kernels.NonFiniteError):
            sequence.error = NonFinite(error.layer, error.where, str(error))
        elif isinstance(error, kernels.CorruptionError):
            sequence.error = Corrupt(str(error))
        else:
            sequence.error = BackendError(
                f"the kernels could not take this step: {error}. Where memory is short, lower "
                "max_tokens or cache_bytes.",
                backend=BACKEND,
            )
            sequence.error.__cause__ = error

    def _fail(self, sequence: Running, error: Exception) -> None:
        """End a sequence that is in no pass."""
        sequence.error = error
        self._ended = True
        call = self._calls.get(sequence)
        if call is not None:
            call.wake()

    # Who is in

    def _sweep(self) -> None:
        """Let in who arrived and out who is over; after an interrupt, make whole what it tore."""
        torn, self._torn = self._torn, True
        if torn:
            self._recover()
        if self._arrivals:
            with self._lead.mutex:
                arrived, self._arrivals = self._arrivals, []
                self._waiting += arrived
        if self._ended:
            self._ended = False  # before looking: who gives up meanwhile sets it again
            for sequence in self._running:
                if sequence.over:
                    self._put_aside(sequence)
            self._running = [sequence for sequence in self._running if not sequence.over]
            self._waiting = [sequence for sequence in self._waiting if not sequence.over]
        self._torn = False

    def _recover(self) -> None:
        """Find everybody's place again: the calls, and who has a session, say it all."""
        self._ended = True
        with self._lead.mutex:
            self._arrivals = []
            everybody = sorted(self._calls, key=lambda sequence: sequence.number)
        for sequence in everybody:
            try:
                if sequence.error is None:
                    sequence.recover()
            except IsonomyError as error:  # its grammar gave up
                sequence.error = error
        self._running = [sequence for sequence in everybody if sequence.session is not None]
        self._waiting = [sequence for sequence in everybody if sequence.session is None]

    def _forked(self) -> None:
        """In a child: of all callers only the thread that forked is left, and may wait for one."""
        here = threading.get_ident()
        self._calls = {
            sequence: call
            for sequence, call in self._calls.items()
            if call.thread == here and not call.coroutine
        }
        self._coroutines = set()
        self._pump = None
        self._torn = True

    def _put_aside(self, sequence: Running) -> None:
        """Take a session away; unless its sequence failed, the prefix cache keeps it."""
        session, sequence.session = sequence.session, None
        if session is None:
            return
        known = min(session.length, len(sequence.ids))
        session.truncate(known)
        sequence.fed = 0
        if sequence.error is None:
            self._prefixes.keep(sequence.buffer[:known], session)

    def _needed(self, sequence: Running) -> int:
        needed = self._decoder.cache_bytes(sequence.capacity)
        return needed if sequence.draft is None else needed + sequence.draft.bytes

    def _admit(self) -> None:
        """Begin with those who wait, in the order of arrival, while there is room."""
        if not self._waiting:
            return
        for sequence in self._waiting[:]:
            if sequence.undelivered >= UNDELIVERED:
                continue  # gave up its place, and its caller still reads
            if not self._make_room(sequence):
                break
            self._begin(sequence)

    def _make_room(self, sequence: Running) -> bool:
        """See whether one more fits; whoever is passed over makes room for it if that helps."""
        parked = [other for other in self._running if other.undelivered >= UNDELIVERED]
        needed = sequence.reserved + sum(other.reserved for other in self._running)
        number = 1 + len(self._running)
        if (
            needed - sum(other.reserved for other in parked) > self._cache_bytes
            or number - len(parked) > self._max_running
        ):
            return False
        while needed > self._cache_bytes or number > self._max_running:
            other = parked.pop()
            needed -= other.reserved
            number -= 1
            self._put_aside(other)
            self._running.remove(other)
            self._waiting.append(other)
        self._waiting.sort(key=lambda waiting: waiting.number)
        return True

    def _begin(self, sequence: Running) -> None:
        """Give a sequence its session, forked from one that begins alike where there is one."""
        known = sequence.buffer[: len(sequence.ids)]
        found = None if sequence.cold else self._prefixes.find(known)
        others = sum(other.reserved for other in self._running)
        room = self._cache_bytes - others - sequence.reserved
        self._waiting.remove(sequence)
        try:
            if found is None:
                self._prefixes.shrink(room)
                sequence.session = self._decoder.session(sequence.capacity)
            else:
                kept, sequence.fed = found
                sequence.session = kept.fork(sequence.capacity, sequence.fed)
                sequence.cached = max(sequence.cached, min(sequence.fed, sequence.prompted))
                self._prefixes.shrink(room)
        except kernels.KernelError as error:
            self._prefixes.shrink(0)
            message = f"no memory for the cache of this request: {error}. Lower cache_bytes."
            self._fail(sequence, BackendError(message, backend=BACKEND))
            return
        sequence.admitted = sequence.admitted or self._clock()
        self._running.append(sequence)
        self._running.sort(key=lambda running: running.number)
