//! `bench connect`: many idle connections.

use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use thalweg_protocol::op::{ClientOp, ServerOp};
use thalweg_workload::{Arrivals, Schedule};

use crate::cli::{ConnectArgs, Context, Idle};
use crate::clock::nanos;
use crate::error::LoadError;
use crate::latency::Latencies;
use crate::process::{Process, per_cpu_second};
use crate::report::{Row, round};
use crate::swarm::{Greeting, Seen, Swarm};

/// How long the last handshakes may take.
const GRACE: Duration = Duration::from_secs(30);
/// After the last handshake the server's memory is looked at this much later, so that what a handshake needs is freed.
const SETTLE: Duration = Duration::from_secs(2);
/// Pings a second by which the connections are checked at the end, all of them within [`CHECK_LIMIT`].
const CHECK_RATE: f64 = 5_000.0;
/// See [`CHECK_RATE`].
const CHECK_LIMIT: Duration = Duration::from_secs(30);

/// Memory of the server at the moments that matter, bytes.
#[derive(Default)]
struct Resident {
    before: Option<u64>,
    open: Option<u64>,
    held: Option<u64>,
}

pub(crate) fn run(args: &ConnectArgs, context: &Context) -> Result<Vec<Row>, LoadError> {
    let greeting = Greeting::Hello { token: context.target.token.clone() };
    let mut swarm = Swarm::new(&context.target, greeting, context.idle.unwrap_or(Idle::Park))?;
    let memory = || context.server.as_ref().map(Process::resident_bytes).transpose();
    let mut resident = Resident { before: memory()?, ..Resident::default() };
    let (cpu_before, start_ns) = (context.server_cpu()?, swarm.clock().now_ns());
    let (handshakes, failed) = open(args, &mut swarm)?;
    let opened_s = (swarm.clock().now_ns() - start_ns) as f64 / 1e9;
    let handshake_cpu = cpu_before.zip(context.server_cpu()?).map(|(before, after)| after - before);
    if handshakes.count() == 0 {
        let reason = failed.last().cloned().unwrap_or_else(|| "no answer".into());
        return Err(LoadError::Unreachable { server: context.target.server, reason });
    }
    hold(&mut swarm, SETTLE)?;
    resident.open = memory()?;
    let (idle_cpu, alive) = (context.server_cpu()?, swarm.alive());
    hold(&mut swarm, args.hold)?;
    resident.held = memory()?;
    let idle_cpu = idle_cpu.zip(context.server_cpu()?).map(|(before, after)| after - before);
    let (pongs, answered) = check(&mut swarm)?;
    let dropped = alive.saturating_sub(answered);
    swarm.close();

    let per_connection = |bytes: Option<u64>| {
        let grown = bytes?.saturating_sub(resident.before?) as f64;
        Some(grown / alive.max(1) as f64)
    };
    let percent = idle_cpu.map(|s| 100.0 * s / args.hold.as_secs_f64().max(1e-9));
    let handshake = Row::new("connect_handshake", &handshakes, opened_s)
        .with("failed", failed.len() as u64)
        .with("first_failure", failed.first().cloned())
        .with_known("server_cpu_s", handshake_cpu)
        .with_known("handshakes_per_cpu_s", per_cpu_second(handshakes.count(), handshake_cpu));
    let held = Row::new("connect_hold", &pongs, 0.0)
        .with("connections", alive as u64)
        .with("dropped", dropped as u64)
        .with("held_s", round(args.hold.as_secs_f64()))
        .with_known("rss_per_connection_bytes", per_connection(resident.open))
        .with_known("rss_per_connection_after_hold_bytes", per_connection(resident.held))
        .with_known("server_idle_cpu_percent", percent);
    Ok(vec![handshake, held])
}

/// Opens the connections by schedule: their handshakes, from intended to welcomed, and why others failed.
fn open(args: &ConnectArgs, swarm: &mut Swarm) -> Result<(Latencies, Vec<String>), LoadError> {
    let start_ns = swarm.clock().now_ns();
    let mut rng = StdRng::seed_from_u64(1);
    let mut schedule = Schedule::new(Arrivals::Even, args.rate, start_ns);
    let mut next_ns = schedule.next(&mut rng);
    let (mut intended, mut handshakes, mut failed) = (Vec::new(), Latencies::new(), Vec::new());
    let limit = Duration::from_secs_f64(args.connections as f64 / args.rate) + GRACE;
    swarm.run_until(limit, |swarm, seen| {
        let now_ns = swarm.clock().now_ns();
        match seen {
            Some((id, Seen::Ready)) => handshakes.record(intended[id], now_ns),
            Some((_, Seen::Lost(reason))) => failed.push(reason),
            Some(_) => {}
            None => {
                while let Some(at) = next_ns.filter(|&at| at <= now_ns && intended.len() < args.connections) {
                    swarm.open()?;
                    intended.push(at);
                    next_ns = schedule.next(&mut rng);
                }
                if let Some(at) = next_ns.filter(|_| intended.len() < args.connections) {
                    swarm.wake_at(at);
                }
            }
        }
        Ok(handshakes.count() as usize + failed.len() == args.connections)
    })?;
    Ok((handshakes, failed))
}

/// Keeps the connections alive and does nothing else.
fn hold(swarm: &mut Swarm, time: Duration) -> Result<(), LoadError> {
    let end_ns = swarm.clock().now_ns() + nanos(time);
    swarm.run_until(time, |swarm, _| {
        swarm.wake_at(end_ns);
        Ok(swarm.clock().now_ns() >= end_ns)
    })?;
    Ok(())
}

/// Pings every connection once: the round trips, and how many answered. What the transport believes to be alive may be
/// gone at the other end.
fn check(swarm: &mut Swarm) -> Result<(Latencies, usize), LoadError> {
    let mut rng = StdRng::seed_from_u64(1);
    let mut schedule = Schedule::new(Arrivals::Even, CHECK_RATE, swarm.clock().now_ns());
    let mut next_ns = schedule.next(&mut rng);
    let mut waiting: std::collections::VecDeque<usize> = (0..swarm.opened()).filter(|&id| swarm.is_alive(id)).collect();
    let wanted = waiting.len();
    let (mut intended, mut pongs, mut answered) = (vec![0; swarm.opened()], Latencies::new(), 0);
    swarm.run_until(CHECK_LIMIT, |swarm, seen| {
        match seen {
            Some((id, Seen::Frame { op: ServerOp::Pong { .. }, at_ns, .. })) => {
                pongs.record(intended[id], at_ns);
                answered += 1;
            }
            Some(_) => {}
            None => {
                let now_ns = swarm.clock().now_ns();
                while let Some(at) = next_ns.filter(|&at| at <= now_ns && !waiting.is_empty()) {
                    if let Some(id) = waiting.pop_front() {
                        intended[id] = at;
                        swarm.request(id, 1, &ClientOp::Ping { nonce: 1 })?;
                    }
                    next_ns = schedule.next(&mut rng);
                }
                if let Some(at) = next_ns.filter(|_| !waiting.is_empty()) {
                    swarm.wake_at(at);
                }
            }
        }
        Ok(answered == wanted)
    })?;
    Ok((pongs, answered))
}
