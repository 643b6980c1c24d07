//! Times a piece of work, and prints the median of some samples with the fastest and the slowest.

use std::hint::black_box;
use std::time::{Duration, Instant};

const SAMPLES: usize = 15;
/// A sample repeats short work until it has taken about so long.
const SAMPLE: Duration = Duration::from_millis(100);

/// Prints how long `work` takes, which is over `bytes` bytes. It tells its own time, so that
/// what it prepares isn't counted.
pub(crate) fn measure(name: &str, bytes: usize, mut work: impl FnMut() -> Duration) {
    // The first time fills the caches.
    work();
    let once = work().max(Duration::from_nanos(1));
    let times = (SAMPLE.as_nanos() / once.as_nanos()).clamp(1, 1 << 20) as u32;
    let mut samples: Vec<Duration> =
        (0..SAMPLES).map(|_| (0..times).map(|_| work()).sum::<Duration>() / times).collect();
    samples.sort_unstable();
    let (fastest, median, slowest) = (samples[0], samples[SAMPLES / 2], samples[SAMPLES - 1]);
    let megabytes = bytes as f64 / median.as_secs_f64() / 1e6;
    println!("{name:<24} {median:>10.1?} {megabytes:>9.1} MB/s, from {fastest:.1?} to {slowest:.1?}");
}

/// How long `work` takes, without the time for dropping what it gives.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> Duration {
    let started = Instant::now();
    let made = black_box(work());
    let took = started.elapsed();
    drop(made);
    took
}
