//! Runs work that waits for other people's services, or for a disk, on threads of its own, so that acknowledgements come
//! first.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::runtime::{self, Handle, Runtime, RuntimeFlavor};
use tokio_util::task::AbortOnDropHandle;

/// On a busy processor these threads get a quarter of the time, and the threads that take events get the rest. A
/// quarter is more than sending what was taken needs.
const NICENESS: i32 = 5;

/// A thread that waits for work stays. Where the system gives no more (a limit of processes), tokio ends the process if none is
/// left to take the work.
pub const KEEP_THREADS: Duration = Duration::from_secs(365 * 86_400);
/// More than the process has at a time, beside one for each processor.
const THREADS: usize = 24;

/// Whether the system gives the threads that the process needs.
///
/// # Errors
/// How many were asked for, and why one of them was not given.
pub fn try_threads() -> Result<(), (usize, io::Error)> {
    let wanted = THREADS + thread::available_parallelism().map_or(1, usize::from);
    let gate = Arc::new(Mutex::new(()));
    let shut = gate.lock().unwrap_or_else(PoisonError::into_inner);
    let wait = || {
        let gate = gate.clone();
        thread::Builder::new().spawn(move || drop(gate.lock()))
    };
    let threads: io::Result<Vec<_>> = (0..wanted).map(|_| wait()).collect();
    drop(shut);
    let threads = threads.map_err(|error| (wanted, error))?;
    threads.into_iter().for_each(|thread| drop(thread.join()));
    Ok(())
}

/// A runtime with one thread. It ends when it is dropped, without waiting for what is under way: an attempt that hangs
/// in the network or in the file system must not hold up the exit.
pub struct Background(Option<Runtime>);

impl Background {
    /// Starts it. Fails where no thread can be had.
    pub fn start(name: &str) -> io::Result<Background> {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_keep_alive(KEEP_THREADS)
            .thread_name(name)
            .on_thread_start(|| {
                // Where the system refuses, the work is only less considerate.
                let _ = rustix::process::nice(NICENESS);
            })
            .enable_all()
            .build()?;
        // The first of those that may block.
        runtime.spawn_blocking(|| ());
        Ok(Background(Some(runtime)))
    }

    /// To spawn tasks with.
    pub fn handle(&self) -> &Handle {
        self.0.as_ref().expect("it is taken only when it is dropped").handle()
    }

    /// Has `future` run there, and waits for its outcome. Dropping this ends it.
    ///
    /// For requests: a connection is driven by the runtime that its first request was sent from, and without a pause as
    /// long as its server sends.
    pub async fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        // Such a runtime has no other thread that could be held up. Only tests have one, and its clock may be one that
        // runs ahead while another thread works.
        if Handle::try_current().is_ok_and(|at_hand| at_hand.runtime_flavor() == RuntimeFlavor::CurrentThread) {
            return future.await;
        }
        match AbortOnDropHandle::new(self.handle().spawn(future)).await.map_err(tokio::task::JoinError::try_into_panic)
        {
            Ok(outcome) => outcome,
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // Its runtime ends when `self` is dropped, so this can't happen.
            Err(Err(_)) => std::future::pending().await,
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Runs work that waits for a disk on a thread that may wait.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and nothing waits for this.
            Err(_) => std::future::pending().await,
        },
    }
}
