//! Threads that compute one thing together: a leader, who decides what, and members that wait for it.
//!
//! [`Team::run`] has all of them run the same closure. Inside, work is shared out by [`Member::each`] and phases are parted
//! by [`Member::barrier`]; both cost well below a microsecond as long as every thread has a CPU of its own. Who waits spins
//! for some microseconds, then yields, so that threads that share a CPU still get on; between runs members sleep at last.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Pauses before a thread that waits begins to yield: some tens of microseconds.
const SPINS: u32 = 1_000;
/// Yields before a member that has nothing to do goes to sleep: longer than a leader takes between two steps.
const YIELDS: u32 = 400;

/// A leader, who calls [`Team::run`], and the members that help. Dropping it ends the members.
pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Held by who leads, so that two do not at once.
    leading: Mutex<()>,
}

/// Something only one cache line holds.
#[repr(align(128))]
#[derive(Default)]
struct Line(AtomicUsize);

/// What all members run; lives as long as the leader waits for them.
type Work<'a> = dyn Fn(Member<'_>) + Sync + 'a;

struct Shared {
    count: usize,
    /// Counts runs; members begin when it changes.
    run: Line,
    /// Members that are done with this run.
    done: Line,
    /// Members at the barrier.
    arrived: Line,
    /// Counts barriers.
    turn: Line,
    /// First of the work that nobody took in this phase.
    ticket: Line,
    work: UnsafeCell<Option<*const Work<'static>>>,
    poisoned: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
    asleep: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `work` is written by the leader alone, before `run` is changed and after all members are done; members read it
// in between. What it points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing in it belongs to a thread.
unsafe impl Send for Shared {}

/// Why a member stops that did not fail itself.
struct Poisoned;

impl Team {
    /// The leader alone: everything is run by who calls.
    pub fn alone() -> Self {
        Self { shared: Arc::new(Shared::new(1)), threads: Vec::new(), leading: Mutex::new(()) }
    }

    /// A team of `threads`, the leader being one of them. Member `n` is pinned to CPU `pin[n]` if there is that; the leader
    /// is number 0 and pins itself ([`pin_to`]).
    pub fn new(threads: usize, pin: &[usize]) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::new(threads.max(1)));
        let mut team = Self { shared: Arc::clone(&shared), threads: Vec::new(), leading: Mutex::new(()) };
        for index in 1..threads {
            let (shared, cpu) = (Arc::clone(&shared), pin.get(index).copied());
            let (report, started) = std::sync::mpsc::sync_channel(1);
            let run = move || {
                let _ = report.send(cpu.map_or(Ok(()), pin_to));
                shared.serve(index);
            };
            let builder = std::thread::Builder::new().name(format!("thalweg-team-{index}"));
            team.threads.push(builder.spawn(run)?);
            if let Ok(Err(error)) = started.recv() {
                return Err(error);
            }
        }
        Ok(team)
    }

    /// How many there are, with the leader.
    pub fn count(&self) -> usize {
        self.shared.count
    }

    /// Has everyone run `work` and waits for it. A panic of any ends the others at their next barrier and is raised here.
    pub fn run(&self, work: impl Fn(Member<'_>) + Sync) {
        let shared = &*self.shared;
        let _leading = lock(&self.leading);
        shared.arrived.0.store(0, Ordering::Relaxed);
        shared.ticket.0.store(0, Ordering::Relaxed);
        shared.done.0.store(0, Ordering::Relaxed);
        shared.poisoned.store(false, Ordering::Relaxed);
        if shared.count > 1 {
            let work: &Work<'_> = &work;
            // SAFETY: the lifetime is forgotten, but no member holds the pointer beyond this function, which waits for all
            // to be done before it returns, whatever happens.
            let work = unsafe { std::mem::transmute::<*const Work<'_>, *const Work<'static>>(work) };
            // SAFETY: all members wait for `run` to change, so nobody reads this now.
            unsafe { *shared.work.get() = Some(work) };
            shared.run.0.fetch_add(1, Ordering::SeqCst);
            if shared.asleep.load(Ordering::SeqCst) > 0 {
                let _sleep = lock(&shared.sleep);
                shared.wake.notify_all();
            }
        }
        shared.take_part(0, &work);
        let mut patience = Patience::default();
        while shared.done.0.load(Ordering::Acquire) + 1 < shared.count {
            patience.wait();
        }
        if shared.poisoned.load(Ordering::Acquire) {
            let panic = lock(&shared.panic).take();
            resume_unwind(panic.unwrap_or_else(|| Box::new("a member of the team panicked")));
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.run.0.fetch_add(1, Ordering::SeqCst);
        drop(lock(&self.shared.sleep));
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            // Members catch the panics of what they run.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn new(count: usize) -> Self {
        Self {
            count,
            run: Line::default(),
            done: Line::default(),
            arrived: Line::default(),
            turn: Line::default(),
            ticket: Line::default(),
            work: UnsafeCell::new(None),
            poisoned: AtomicBool::new(false),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            asleep: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    /// The life of member `index`.
    fn serve(&self, index: usize) {
        let mut seen = 0;
        loop {
            seen = self.await_run(seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            // SAFETY: the leader wrote it before it changed `run`, which was seen, and waits for `done` below before it
            // lets what it points to go.
            if let Some(work) = unsafe { *self.work.get() } {
                // SAFETY: as above.
                self.take_part(index, unsafe { &*work });
            }
            self.done.0.fetch_add(1, Ordering::Release);
        }
    }

    /// Waits until `run` is not `seen`, and gives what it is.
    fn await_run(&self, seen: usize) -> usize {
        let mut patience = Patience::default();
        while patience.waited < SPINS + YIELDS {
            let now = self.run.0.load(Ordering::Acquire);
            if now != seen {
                return now;
            }
            patience.wait();
        }
        let mut sleep = lock(&self.sleep);
        // The leader changes `run`, then looks whether anyone sleeps; here it is the other way round. One sees the other.
        self.asleep.fetch_add(1, Ordering::SeqCst);
        let now = loop {
            let now = self.run.0.load(Ordering::SeqCst);
            if now != seen {
                break now;
            }
            sleep = self.wake.wait(sleep).unwrap_or_else(PoisonError::into_inner);
        };
        self.asleep.fetch_sub(1, Ordering::SeqCst);
        now
    }

    /// Runs `work` as member `index` and keeps its panic for the leader.
    fn take_part(&self, index: usize, work: &Work<'_>) {
        let member = Member { shared: self, index };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(member))) {
            if !panic.is::<Poisoned>() {
                lock(&self.panic).get_or_insert(panic);
            }
            self.poisoned.store(true, Ordering::Release);
        }
    }
}

/// One of a team, while it runs something.
#[derive(Clone, Copy)]
pub struct Member<'a> {
    shared: &'a Shared,
    index: usize,
}

impl Member<'_> {
    /// Which one: below [`Member::count`]; the leader is 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.shared.count
    }

    /// Waits for all; what each wrote before is seen by all after. Every member must come to every barrier.
    pub fn barrier(&self) {
        let shared = self.shared;
        let turn = shared.turn.0.load(Ordering::Relaxed);
        if shared.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == shared.count {
            shared.arrived.0.store(0, Ordering::Relaxed);
            shared.ticket.0.store(0, Ordering::Relaxed);
            shared.turn.0.store(turn.wrapping_add(1), Ordering::Release);
            return;
        }
        let mut patience = Patience::default();
        while shared.turn.0.load(Ordering::Acquire) == turn {
            if shared.poisoned.load(Ordering::Acquire) {
                // Not a panic of its own: the hook has nothing to print.
                resume_unwind(Box::new(Poisoned));
            }
            patience.wait();
        }
    }

    /// Runs `work` on pieces of `0..total`, of up to `piece` each (at least 1), until all were taken by someone. At most once
    /// between two barriers, and with the same numbers by all. Alone, the whole is one piece.
    pub fn each(&self, total: usize, piece: usize, mut work: impl FnMut(Range<usize>)) {
        if self.shared.count == 1 {
            if total > 0 {
                work(0..total);
            }
            return;
        }
        let piece = piece.max(1);
        loop {
            let start = self.shared.ticket.0.fetch_add(piece, Ordering::Relaxed);
            if start >= total {
                return;
            }
            work(start..total.min(start + piece));
        }
    }

    /// A piece for [`Member::each`] of `total` such that each gets several, in multiples of `unit`.
    pub fn piece(&self, total: usize, unit: usize) -> usize {
        (total / (self.count() * 4)).next_multiple_of(unit.max(1)).max(1)
    }
}

#[derive(Default)]
struct Patience {
    waited: u32,
}

impl Patience {
    fn wait(&mut self) {
        match self.waited < SPINS {
            true => std::hint::spin_loop(),
            false => std::thread::yield_now(),
        }
        self.waited = self.waited.saturating_add(1);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the locks hold is whole at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Pins the calling thread to `cpu`. Does nothing on systems without that.
pub fn pin_to(cpu: usize) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        if cpu >= libc::CPU_SETSIZE as usize {
            return Err(std::io::Error::other("there is no such CPU"));
        }
        // SAFETY: a zeroed cpu_set_t is an empty set; `cpu` lies inside of it; the call reads the set it is given.
        let failed = unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut set);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
        };
        if failed != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    let _ = cpu;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn team(threads: usize) -> Team {
        Team::new(threads, &[]).expect("threads")
    }

    #[test]
    fn every_piece_is_taken_once_and_phases_see_each_other() {
        let check = |threads: usize, total: usize, piece: usize| {
            let team = team(threads);
            let cells: Vec<AtomicUsize> = (0..total).map(|_| AtomicUsize::new(0)).collect();
            let members = AtomicUsize::new(0);
            for round in 0..50 {
                team.run(|member| {
                    assert!(member.index() < member.count() && member.count() == threads);
                    members.fetch_add(1, Ordering::Relaxed);
                    for phase in 0..4 {
                        member.each(total, piece, |range| {
                            for cell in &cells[range] {
                                // Relaxed: the barrier is what makes the phase before visible.
                                assert_eq!(cell.fetch_add(1, Ordering::Relaxed), round * 4 + phase);
                            }
                        });
                        member.barrier();
                        assert!(cells.iter().all(|cell| cell.load(Ordering::Relaxed) > round * 4 + phase));
                        member.barrier();
                    }
                });
            }
            assert_eq!(members.load(Ordering::Relaxed), 50 * threads);
        };
        check(1, 10, 3);
        check(2, 1, 1);
        check(2, 100, 7);
        check(4, 0, 5);
        check(5, 33, 1);
    }

    #[test]
    fn a_panic_of_any_ends_all_and_is_raised_once() {
        let check = |threads: usize, who: usize| {
            let team = team(threads);
            for _ in 0..3 {
                let caught = catch_unwind(AssertUnwindSafe(|| {
                    team.run(|member| {
                        member.barrier();
                        if member.index() == who {
                            resume_unwind(Box::new("on purpose"));
                        }
                        member.barrier();
                        unreachable!("nobody passes a barrier that one never comes to");
                    });
                }));
                assert_eq!(caught.expect_err("it panicked").downcast_ref(), Some(&"on purpose"), "{who} of {threads}");
                let count = AtomicUsize::new(0);
                team.run(|member| {
                    member.barrier();
                    count.fetch_add(1, Ordering::Relaxed);
                });
                assert_eq!(count.load(Ordering::Relaxed), threads, "the team works on");
            }
        };
        check(1, 0);
        check(3, 0);
        check(3, 2);
    }

    #[test]
    fn members_that_sleep_wake_up_and_those_of_a_team_that_goes_end() {
        let team = team(3);
        while team.shared.asleep.load(Ordering::SeqCst) < 2 {
            std::thread::yield_now();
        }
        let count = AtomicUsize::new(0);
        team.run(|_| _ = count.fetch_add(1, Ordering::Relaxed));
        assert_eq!(count.load(Ordering::Relaxed), 3);
        drop(team);
        assert_eq!(Team::alone().count(), 1);
    }

    #[test]
    fn a_cpu_that_is_not_there_is_refused() {
        assert!(Team::new(2, &[0, 100_000]).is_err());
    }
}
