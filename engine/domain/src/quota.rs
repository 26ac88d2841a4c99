//! How much somebody may do in a time, and how much they may have.

use std::collections::BTreeMap;

use thalweg_protocol::ids::Name;

/// So many a second, and so many at once after a rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// So many a second; at least 1.
    pub per_second: u64,
    /// So many at once; at least 1.
    pub burst: u64,
}

/// What a session, a user or a tenant may do and have. `None` sets no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Allowance {
    /// Messages it writes, with edits, reactions and changes of channels.
    pub messages: Option<Rate>,
    /// Bytes of what it writes.
    pub bytes: Option<Rate>,
    /// Tokens of generations it asks for, a minute.
    pub tokens_per_minute: Option<u64>,
    /// Connections at a time. Means nothing for a session.
    pub connections: Option<u32>,
    /// Channels that exist at a time. Means nothing for a session or a user.
    pub channels: Option<u32>,
}

/// What a tenant and each of its users may do and have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TenantLimits {
    /// Each of its sessions.
    pub session: Allowance,
    /// Each of its users, over all sessions.
    pub user: Allowance,
    /// All of its users together.
    pub tenant: Allowance,
}

/// The limits of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// Those of a tenant that has none of its own.
    pub default: TenantLimits,
    /// Those of tenants that have.
    pub tenants: BTreeMap<Name, TenantLimits>,
}

impl Limits {
    /// The limits of a tenant.
    pub fn of(&self, tenant: &Name) -> &TenantLimits {
        self.tenants.get(tenant).unwrap_or(&self.default)
    }
}

/// A bucket that fills at a rate, up to a burst, and out of which is taken what is done. One token is a microtoken times a
/// million, so that slow rates do not round to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bucket {
    /// Millionths of what is in it; below zero after more was taken than there was.
    level: i128,
    /// When it was last filled, in microseconds.
    at_us: u64,
    /// Whether it was ever used; a new one is full.
    used: bool,
}

/// What one is, in millionths.
const ONE: i128 = 1_000_000;

impl Bucket {
    /// Takes `count` out, if there is anything in it: who takes much waits longer for the next. If there is nothing, says
    /// after how many milliseconds there will be.
    ///
    /// # Errors
    /// The time to wait, in milliseconds, at least 1.
    pub fn take(&mut self, rate: Rate, count: u64, now_us: u64) -> Result<(), u32> {
        self.fill(rate, now_us);
        if self.level <= 0 {
            return Err(self.wait_ms(rate));
        }
        self.level -= i128::from(count) * ONE;
        Ok(())
    }

    /// Takes `count` out, though there may be nothing in it: it was done already.
    pub fn charge(&mut self, rate: Rate, count: u64, now_us: u64) {
        self.fill(rate, now_us);
        self.level -= i128::from(count) * ONE;
    }

    /// Puts `count` back, which turned out not to have been done.
    pub fn give_back(&mut self, rate: Rate, count: u64, now_us: u64) {
        self.fill(rate, now_us);
        let full = i128::from(rate.burst.max(1)) * ONE;
        self.level = (self.level + i128::from(count) * ONE).min(full);
    }

    /// Whether anything is in it; if not, after how many milliseconds there will be.
    ///
    /// # Errors
    /// The time to wait, in milliseconds, at least 1.
    pub fn check(&mut self, rate: Rate, now_us: u64) -> Result<(), u32> {
        self.fill(rate, now_us);
        if self.level <= 0 { Err(self.wait_ms(rate)) } else { Ok(()) }
    }

    fn fill(&mut self, rate: Rate, now_us: u64) {
        let full = i128::from(rate.burst.max(1)) * ONE;
        if !self.used {
            (self.used, self.level, self.at_us) = (true, full, now_us);
        }
        // A microsecond at one a second is a millionth of one.
        let passed_us = i128::from(now_us.saturating_sub(self.at_us));
        self.level = (self.level + passed_us * i128::from(rate.per_second)).min(full);
        self.at_us = self.at_us.max(now_us);
    }

    fn wait_ms(&self, rate: Rate) -> u32 {
        let us = (1 - self.level) / i128::from(rate.per_second.max(1));
        u32::try_from(us / 1_000 + 1).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let rate = Rate { per_second: 10, burst: 3 };
        let mut bucket = Bucket::default();
        for n in 0..3 {
            assert_eq!(bucket.take(rate, 1, 1_000_000), Ok(()), "{n} of the burst");
        }
        let wait = bucket.take(rate, 1, 1_000_000).expect_err("the burst is used up");
        assert!((1..=101).contains(&wait), "{wait}");
        assert_eq!(bucket.take(rate, 1, 1_000_000 + u64::from(wait) * 1_000), Ok(()));
        let taken = (0..10_000).filter(|n| bucket.take(rate, 1, 2_000_000 + n * 1_000).is_ok()).count();
        assert!((100..=104).contains(&taken), "{taken} in ten seconds at ten a second");
    }

    #[test]
    fn who_takes_more_than_there_is_pays_later() {
        let rate = Rate { per_second: 1_000, burst: 1_000 };
        let mut bucket = Bucket::default();
        assert_eq!(bucket.take(rate, 5_000, 0), Ok(()), "a large one is not refused for ever");
        assert_eq!(bucket.take(rate, 1, 0), Err(4_001));
        bucket.charge(rate, 1_000, 0);
        assert_eq!(bucket.check(rate, 5_000_000), Err(1));
        assert_eq!(bucket.check(rate, 5_001_000), Ok(()));
        bucket.charge(rate, 900, 5_001_000);
        bucket.give_back(rate, 900, 5_001_000);
        assert_eq!(bucket.check(rate, 5_001_000), Ok(()), "what is given back is there again");
        assert_eq!(bucket.check(rate, 4_000_000), Ok(()), "a clock that goes back changes nothing");
    }
}
