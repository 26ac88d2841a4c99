//! Failed logins, and how long they make the next one wait.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};

use thalweg_protocol::ids::Name;

use super::limits::{
    ADDRESS_DELAY_S_MAX, FAILURES_FORGOTTEN_S, FAILURES_REMEMBERED_MAX, FREE_FAILURES_PER_ADDRESS,
    FREE_FAILURES_PER_USER, USER_DELAY_S_MAX,
};

/// Remembers failures by user, existing or not, and by address. Times are microseconds of a clock that does not step.
#[derive(Default)]
pub(crate) struct Attempts {
    users: Failures<(Name, Name)>,
    addresses: Failures<IpAddr>,
}

impl Attempts {
    /// How long a login must still wait, in milliseconds; 0 if it may be tried.
    pub(crate) fn wait_ms(&self, who: &(Name, Name), from: IpAddr, now_us: u64) -> u32 {
        let until_us = self.users.until_us(who).max(self.addresses.until_us(&network(from)));
        until_us.saturating_sub(now_us).div_ceil(1_000).min(u32::MAX.into()) as u32
    }

    /// Counts a failure; says how long the next try must wait, in milliseconds.
    pub(crate) fn failed(&mut self, who: &(Name, Name), from: IpAddr, now_us: u64) -> u32 {
        self.users.count(who.clone(), now_us, FREE_FAILURES_PER_USER, USER_DELAY_S_MAX);
        self.addresses.count(network(from), now_us, FREE_FAILURES_PER_ADDRESS, ADDRESS_DELAY_S_MAX);
        self.wait_ms(who, from, now_us)
    }

    /// Forgets a user's failures. Those of the address stay, or somebody with one account could guess at others for ever.
    pub(crate) fn succeeded(&mut self, who: &(Name, Name)) {
        self.users.0.remove(who);
    }
}

/// Whoever has an address has its whole network: with IPv6 that is usually a /64.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    }
}

struct Failures<K>(HashMap<K, Failed>);

impl<K> Default for Failures<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

struct Failed {
    count: u32,
    last_us: u64,
    until_us: u64,
}

impl<K: Eq + Hash + Clone> Failures<K> {
    fn until_us(&self, key: &K) -> u64 {
        self.0.get(key).map_or(0, |failed| failed.until_us)
    }

    fn count(&mut self, key: K, now_us: u64, free: u32, delay_s_max: u64) {
        if !self.0.contains_key(&key) && self.0.len() >= FAILURES_REMEMBERED_MAX {
            self.make_room(now_us);
        }
        let failed = self.0.entry(key).or_insert(Failed { count: 0, last_us: now_us, until_us: 0 });
        if now_us.saturating_sub(failed.last_us) > FAILURES_FORGOTTEN_S * 1_000_000 {
            failed.count = 0;
        }
        (failed.count, failed.last_us) = (failed.count.saturating_add(1), now_us);
        if let Some(over) = failed.count.checked_sub(free) {
            let delay_s = 1_u64.checked_shl(over).unwrap_or(u64::MAX).min(delay_s_max);
            failed.until_us = now_us + delay_s * 1_000_000;
        }
    }

    /// Drops what is forgotten anyway, or else the older half, so that the cost of looking is spread.
    fn make_room(&mut self, now_us: u64) {
        self.0.retain(|_, failed| now_us.saturating_sub(failed.last_us) <= FAILURES_FORGOTTEN_S * 1_000_000);
        if self.0.len() >= FAILURES_REMEMBERED_MAX {
            let mut ages: Vec<u64> = self.0.values().map(|failed| failed.last_us).collect();
            let middle = ages.len() / 2;
            let oldest_kept = *ages.select_nth_unstable(middle).1;
            self.0.retain(|_, failed| failed.last_us > oldest_kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    fn who(user: &str) -> (Name, Name) {
        (Name::new("t").expect("valid"), Name::new(user).expect("valid"))
    }

    #[test]
    fn delays_grow_and_are_forgotten() {
        let (mut attempts, ip) = (Attempts::default(), IpAddr::from([10, 0, 0, 1]));
        let delays: Vec<u32> = (0..10).map(|_| attempts.failed(&who("ada"), ip, S)).collect();
        assert_eq!(&delays[..8], [0, 0, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000]);
        assert_eq!(attempts.wait_ms(&who("ada"), ip, 3 * S), 28_000);
        attempts.succeeded(&who("ada"));
        assert_eq!(attempts.wait_ms(&who("ada"), IpAddr::from([10, 0, 0, 2]), S), 0);
        for _ in 0..30 {
            attempts.failed(&who("bob"), ip, S);
        }
        assert_eq!(attempts.wait_ms(&who("eve"), ip, S), 900_000, "the address waits, whoever it tries");
        let later = (FAILURES_FORGOTTEN_S + 2) * S;
        assert_eq!(attempts.failed(&who("eve"), ip, later), 0, "forgotten after a while");
    }

    #[test]
    fn a_network_is_one_address() {
        let mut attempts = Attempts::default();
        let ip = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]);
        for n in 0..20 {
            attempts.failed(&who(&format!("u{n}")), ip(n), S);
        }
        assert!(attempts.wait_ms(&who("x"), ip(99), S) > 0);
        assert_eq!(attempts.wait_ms(&who("x"), IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, 1]), S), 0);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut attempts, ip) = (Attempts::default(), IpAddr::from([10, 0, 0, 1]));
        for n in 0..FAILURES_REMEMBERED_MAX as u64 + 10 {
            attempts.failed(&who(&format!("u{n}")), ip, n);
        }
        assert!(attempts.users.0.len() <= FAILURES_REMEMBERED_MAX / 2 + 11);
        assert!(attempts.addresses.until_us(&ip) > 0);
    }
}
