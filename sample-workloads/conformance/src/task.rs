//! Tasks of the one thread of a component: futures over pollables, run by [`run`].
//!
//! A task waits with [`Wait`]. The loop polls every task whose pollable is ready, then waits for the pollables of all tasks at once.
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::future::{Future, poll_fn};
use core::marker::PhantomData;
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};
use guest::wasip2::clocks::monotonic_clock::subscribe_duration;
use guest::wasip2::io::poll::{Pollable, poll};
use guest::{Box, Vec};

/// Some 290 years.
const FOREVER_NS: u64 = u64::MAX / 2;

type Task = Pin<Box<dyn Future<Output = ()>>>;

struct Waiting {
    id: u64,
    task: usize,
    pollable: Rc<Pollable>,
}

struct Loop {
    waiting: RefCell<Vec<Waiting>>,
    spawned: RefCell<Vec<Task>>,
    /// The task that is polled.
    current: Cell<usize>,
    next_id: Cell<u64>,
}

// SAFETY: a component has one thread.
unsafe impl Sync for Loop {}

static LOOP: Loop = Loop {
    waiting: RefCell::new(Vec::new()),
    spawned: RefCell::new(Vec::new()),
    current: Cell::new(0),
    next_id: Cell::new(0),
};

/// Starts a task. It runs while [`run`] does.
pub fn spawn(task: impl Future<Output = ()> + 'static) {
    LOOP.spawned.borrow_mut().push(Box::pin(task));
}

/// Runs a future, and beside it the tasks that are spawned meanwhile.
pub fn run<T>(main: impl Future<Output = T>) -> T {
    let mut main = pin!(main);
    let mut context = Context::from_waker(Waker::noop());
    // The first is `main`.
    let mut tasks: Vec<Option<Task>> = Vec::from([None]);
    let mut ready = Vec::from([0]);
    loop {
        for index in core::mem::take(&mut ready) {
            LOOP.current.set(index);
            if index == 0 {
                if let Poll::Ready(value) = main.as_mut().poll(&mut context) {
                    return value;
                }
            } else if tasks[index].as_mut().is_some_and(|task| task.as_mut().poll(&mut context).is_ready()) {
                tasks[index] = None;
            }
        }
        for task in LOOP.spawned.take() {
            let free = tasks.iter().skip(1).position(Option::is_none).map_or(tasks.len(), |at| at + 1);
            if free == tasks.len() {
                tasks.push(None);
            }
            tasks[free] = Some(task);
            ready.push(free);
        }
        if ready.is_empty() {
            let (owners, pollables): (Vec<usize>, Vec<Rc<Pollable>>) =
                LOOP.waiting.borrow().iter().map(|wait| (wait.task, Rc::clone(&wait.pollable))).unzip();
            let borrowed: Vec<&Pollable> = pollables.iter().map(Rc::as_ref).collect();
            if borrowed.is_empty() {
                // Nothing can wake a task: a server without listeners waits for its end.
                subscribe_duration(FOREVER_NS).block();
                continue;
            }
            ready.extend(poll(&borrowed).into_iter().map(|at| owners[at as usize]));
            ready.sort_unstable();
            ready.dedup();
        }
    }
}

/// Waits for a pollable of `'a`, which must live as long: a handle is dropped before its parent.
pub struct Wait<'a> {
    pollable: Rc<Pollable>,
    id: Option<u64>,
    source: PhantomData<&'a ()>,
}

impl<'a> Wait<'a> {
    pub fn new<T>(_: &'a T, pollable: Pollable) -> Self {
        Self { pollable: Rc::new(pollable), id: None, source: PhantomData }
    }
}

impl Future for Wait<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if self.pollable.ready() {
            return Poll::Ready(());
        }
        if self.id.is_none() {
            let id = LOOP.next_id.get();
            LOOP.next_id.set(id + 1);
            self.id = Some(id);
            let pollable = Rc::clone(&self.pollable);
            LOOP.waiting.borrow_mut().push(Waiting { id, task: LOOP.current.get(), pollable });
        }
        Poll::Pending
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            LOOP.waiting.borrow_mut().retain(|wait| wait.id != id);
        }
    }
}

pub async fn sleep(nanoseconds: u64) {
    Wait::new(&(), subscribe_duration(nanoseconds)).await;
}

/// The future's result, or `None` after the time.
pub async fn within<T>(nanoseconds: u64, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut late = pin!(sleep(nanoseconds));
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => late.as_mut().poll(context).map(|()| None),
    })
    .await
}
