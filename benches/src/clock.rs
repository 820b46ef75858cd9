//! A clock that stands still while another program has the core.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// CPU time of the calling thread, from when it was made on.
pub struct Clock(Duration);

impl Clock {
    /// Starts to count.
    pub fn start() -> Clock {
        Clock(now())
    }

    /// CPU time that this thread has spent since.
    pub fn elapsed(&self) -> Duration {
        now().saturating_sub(self.0)
    }
}

fn now() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
