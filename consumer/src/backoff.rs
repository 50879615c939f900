//! The pauses between attempts: doubling from a tenth of a second to a limit, each shortened by chance to between a
//! half and the whole, so that the consumers of a provider that comes back do not all arrive at once.

use std::time::Duration;

use rand::RngExt;

const FIRST: Duration = Duration::from_millis(100);

/// One series of attempts.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    limit: Duration,
}

impl Backoff {
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            next: FIRST.min(limit),
            limit,
        }
    }

    /// Something worked.
    pub(crate) fn reset(&mut self) {
        self.next = FIRST.min(self.limit);
    }

    pub(crate) fn next_pause(&mut self) -> Duration {
        let pause = self.next.mul_f64(rand::rng().random_range(0.5..=1.0));
        self.next = (self.next * 2).min(self.limit);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_limit() {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        for longest in [100, 200, 400, 800, 1000, 1000] {
            let pause = backoff.next_pause();
            assert!(
                pause <= Duration::from_millis(longest) && pause >= Duration::from_millis(longest / 2),
                "{pause:?}"
            );
        }
        backoff.reset();
        assert!(backoff.next_pause() <= FIRST);
    }
}
