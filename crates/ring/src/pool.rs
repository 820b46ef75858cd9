//! Worker threads of one party.

use std::sync::Arc;

/// A fixed set of worker threads. One thread means the caller's own: nothing is spawned.
#[derive(Clone, Default)]
pub struct Pool {
    workers: Option<Arc<rayon::ThreadPool>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({})", self.threads())
    }
}

impl Pool {
    /// A pool of `threads` workers; 0 and 1 both mean the calling thread alone.
    pub fn new(threads: usize) -> Pool {
        if threads <= 1 {
            return Pool { workers: None };
        }
        let built = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("ring-{i}")).build();
        Pool { workers: built.ok().map(Arc::new) }
    }

    /// How many threads do the work.
    pub fn threads(&self) -> usize {
        self.workers.as_ref().map_or(1, |w| w.current_num_threads())
    }

    /// Calls `work(first, chunk)` on consecutive chunks of `out` of at most `step` elements, `first` being the index of
    /// the chunk's first element. Chunks run in parallel where there are workers.
    pub fn chunks<T: Send>(&self, out: &mut [T], step: usize, work: impl Fn(usize, &mut [T]) + Send + Sync) {
        let step = step.max(1);
        match &self.workers {
            Some(workers) if out.len() > step => {
                use rayon::prelude::*;
                workers.install(|| out.par_chunks_mut(step).enumerate().for_each(|(i, chunk)| work(i * step, chunk)));
            }
            _ => out.chunks_mut(step).enumerate().for_each(|(i, chunk)| work(i * step, chunk)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_is_visited_once_with_its_place() {
        for threads in [0, 1, 3] {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads.max(1));
            for (len, step) in [(0, 4), (1, 4), (10, 3), (10, 0), (64, 64), (65, 64)] {
                let mut out = vec![0usize; len];
                pool.chunks(&mut out, step, |first, chunk| {
                    assert!(chunk.len() <= step.max(1));
                    chunk.iter_mut().enumerate().for_each(|(i, v)| *v += first + i + 1);
                });
                assert!(out.iter().enumerate().all(|(i, v)| *v == i + 1), "{len} by {step} on {threads}");
            }
        }
    }
}
