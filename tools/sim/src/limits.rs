//! What clients may do in a time, how short of memory the node is, and pauses in which nobody does anything.

use std::sync::Arc;

use thalweg_domain::quota::{Allowance, Limits, Rate, TenantLimits};
use thalweg_protocol::ids::CoreId;
use thalweg_shard::Input;

use crate::faults::Fault;
use crate::world::{Event, Plant, Route, World};

/// How long an answer may be under way, in microseconds.
const UNDERWAY_US: u64 = 1_000_000;
/// When everything is asked for after clients do nothing new, in microseconds: what was silent has been noticed by then.
const QUESTIONS_US: u64 = 70_000_000;
/// When the last heartbeat is sent.
const HEARTBEATS_US: u64 = 80_000_000;
/// When everybody counts as gone who takes part in presence and does not observe.
const SILENCE_US: u64 = 150_000_000;

impl World {
    /// Whether a refusal for want of allowance is lawful.
    pub(crate) fn is_limited(&self) -> bool {
        self.limits.is_some() || self.now_us < self.limited_until_us
    }

    /// Whether a refusal for want of memory is lawful.
    pub(crate) fn is_pressed(&self) -> bool {
        self.pressure > 0 || self.now_us < self.pressed_until_us
    }

    /// Sets other limits, or none.
    pub(crate) fn change_limits(&mut self) {
        if self.limits.is_some() && self.chance(0.5) {
            return self.lift_limits();
        }
        self.faults.count(Fault::Limited);
        let allowance = |world: &mut Self, tight: u64| Allowance {
            messages: world.chance(0.7).then(|| world.some_rate(tight)),
            bytes: world.chance(0.3).then(|| world.some_rate(tight * 100)),
            tokens_per_minute: world.chance(0.2).then(|| 1_000 + world.below(100_000)),
            connections: None,
            channels: world.chance(0.1).then_some(3),
        };
        let (session, user, tenant) = (allowance(self, 200), allowance(self, 300), allowance(self, 600));
        let default = TenantLimits { session, user, tenant };
        let limits = Arc::new(Limits { default, ..Limits::default() });
        self.note(format_args!("limits: {default:?}"));
        (self.limits, self.was_limited) = (Some(Arc::clone(&limits)), true);
        self.tell_limits(&limits);
    }

    fn some_rate(&mut self, most: u64) -> Rate {
        Rate { per_second: 20 + self.below(most), burst: 8 + self.below(most / 10) }
    }

    pub(crate) fn lift_limits(&mut self) {
        if self.limits.take().is_some() {
            self.note(format_args!("no limits"));
            self.limited_until_us = self.now_us + UNDERWAY_US;
            self.tell_limits(&Arc::default());
        }
    }

    fn tell_limits(&mut self, limits: &Arc<Limits>) {
        let mut limits = Arc::clone(limits);
        if self.options.plant == Some(Plant::KeepLimits) && limits.default == TenantLimits::default() {
            // Those that stay are tight enough for two to meet them.
            let messages = Some(Rate { per_second: 1, burst: 1 });
            let tenant = Allowance { messages, ..Allowance::default() };
            let default = TenantLimits { tenant, ..TenantLimits::default() };
            limits = Arc::new(Limits { default, ..Limits::default() });
        }
        for core in 0..self.node.cores.len() {
            let (core, input) = (CoreId(core as u16), Input::Limits(Arc::clone(&limits)));
            self.send(Route::Operator(core.0), 2_000, Event::Input { core, input });
        }
    }

    /// The node becomes short of memory, or is no longer.
    pub(crate) fn press(&mut self, level: u8) {
        self.note(format_args!("pressure {level}"));
        if level > 0 {
            self.faults.count(Fault::Pressed);
            self.was_pressed = true;
        } else if self.pressure > 0 {
            self.pressed_until_us = self.now_us + UNDERWAY_US;
        }
        self.pressure = level;
        for core in 0..self.node.cores.len() {
            let (core, input) = (CoreId(core as u16), Input::Pressure { level });
            self.send(Route::Operator(core.0), 2_000, Event::Input { core, input });
        }
    }

    pub(crate) fn change_pressure(&mut self) {
        let level = self.below(4) as u8;
        self.press(level);
        self.within(100_000, Event::Unpress);
    }

    /// What a node that starts is told.
    pub(crate) fn tell_circumstances(&mut self) {
        if let Some(limits) = self.limits.clone() {
            self.tell_limits(&limits);
        }
        if self.pressure > 0 {
            self.press(self.pressure);
        }
    }

    /// Nobody does anything for a while; some are not even heard of.
    pub(crate) fn pause(&mut self) {
        self.faults.count(Fault::Paused);
        let until = self.now_us + 5_000_000 + self.below(90_000_000);
        self.note(format_args!("pause until {until}"));
        self.paused_until_us = until;
    }

    /// What happens once clients do nothing new. Limits that let everybody do a little may stay; those of bytes may not,
    /// since one large message is owed for longer than the end takes.
    pub(crate) fn plan_the_end(&mut self) {
        self.press(0);
        let counts_bytes = self.limits.as_ref().is_some_and(|limits| {
            let TenantLimits { session, user, tenant } = &limits.default;
            [session, user, tenant].iter().any(|allowance| allowance.bytes.is_some())
        });
        if self.chance(0.7) || counts_bytes {
            self.lift_limits();
        }
        self.heartbeats_end_us = Some((self.now_us + HEARTBEATS_US, self.now_us + SILENCE_US));
        self.at(self.now_us + QUESTIONS_US, Event::Questions);
        self.at(self.now_us + SILENCE_US, Event::Silence);
    }

    /// All is at rest: everything is asked for.
    pub(crate) fn questions(&mut self) {
        // One that dies or starts now is asked later.
        if !self.up || self.clients.iter().any(|client| !client.is_settled()) {
            return self.within(1_000_000, Event::Questions);
        }
        self.judge_presence(false);
        self.asked_everything = true;
        for client in 0..self.clients.len() {
            self.ask_everything(client);
            self.ask_documents(client);
        }
    }
}
