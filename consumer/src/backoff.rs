//! The pauses between attempts: doubling from a tenth of a second to a limit, each shortened by chance to between a
//! half and the whole, so that the consumers of a provider that comes back do not all arrive at once. And how often it is looked for
//! what comes within a moment, or not at all ([`Looks`]).

use std::time::Duration;

use rand::RngExt;
use tokio::time::{Instant, sleep};

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

/// So often it is looked again at least, unless there is not even time for that.
const FEWEST_LOOKS: u128 = 10;

/// Looking again and again for a while. That ends only when the time is over and it was looked a number of times: what stands still, be
/// it this process, the machine or the other end, is given the time that it needs to go on.
#[derive(Debug)]
pub(crate) struct Looks {
    patience: Duration,
    pause: Duration,
    until: Option<Instant>,
    left: u128,
}

impl Looks {
    pub(crate) fn new(patience: Duration, pause: Duration) -> Self {
        Self {
            patience,
            pause,
            until: None,
            left: (patience.as_millis() / pause.as_millis().max(1)).min(FEWEST_LOOKS),
        }
    }

    /// To be called after each look that was in vain: whether to look again, which is then the time to do.
    pub(crate) async fn again(&mut self) -> bool {
        let until = *self.until.get_or_insert_with(|| Instant::now() + self.patience);
        if self.left == 0 && Instant::now() >= until {
            return false;
        }
        self.left = self.left.saturating_sub(1);
        sleep(self.pause).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn time_that_went_by_without_a_look_is_not_enough() {
        let mut looks = Looks::new(Duration::from_millis(20), Duration::from_millis(1));
        assert!(looks.again().await);
        std::thread::sleep(Duration::from_millis(40));
        for _ in 1..FEWEST_LOOKS {
            assert!(looks.again().await);
        }
        assert!(!looks.again().await);
        assert!(!Looks::new(Duration::ZERO, Duration::from_millis(1)).again().await);
    }

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
