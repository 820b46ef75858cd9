//! A clock that stands still while another program has the core.

use std::time::Duration;

use cpu_time::ThreadTime;

/// CPU time of the calling thread, from when it was made on.
pub struct Clock(ThreadTime);

impl Clock {
    /// Starts to count.
    pub fn start() -> Clock {
        Clock(ThreadTime::now())
    }

    /// CPU time that this thread has spent since.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}
