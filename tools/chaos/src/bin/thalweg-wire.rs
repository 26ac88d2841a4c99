//! `thalweg-wire`: a bad network in user space, for machines whose kernel has none to offer.
//!
//! It stands between clients and a node and passes UDP datagrams on late, out of order, or not at all. Every so often it
//! speaks to the node from another port, as a phone does that changes its network: QUIC calls that migration.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BinaryHeap};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::Instant;

const USAGE: &str =
    "usage: thalweg-wire LISTEN NODE [--delay MS] [--jitter MS] [--loss PERCENT] [--move SECONDS] [--seed S]

  LISTEN          where clients find it, such as 127.0.0.1:5533
  NODE            where the node is, such as 127.0.0.1:4433
  --delay MS      each datagram takes so long, each way (40)
  --jitter MS     and up to so much longer, so that some overtake others (20)
  --loss PERCENT  so many of a hundred are lost, each way (2)
  --move SECONDS  the node sees each client come from another port after so long (never)
  --seed S        what is drawn (random)";

/// Datagrams under way; one more is lost, as on a wire that is full.
const UNDER_WAY_MAX: usize = 65_536;
/// Clients at a time; a datagram of one more is lost.
const CLIENTS_MAX: usize = 1_024;
/// The largest datagram there is.
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// How bad it is.
#[derive(Debug, Clone, PartialEq)]
struct Weather {
    listen: SocketAddr,
    node: SocketAddr,
    delay: Duration,
    jitter: Duration,
    loss: f64,
    moves: Option<Duration>,
    seed: u64,
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Weather, String> {
    let address = |what: &str, text: Option<String>| {
        let text = text.ok_or_else(|| format!("{what} is missing"))?;
        text.parse().map_err(|_| format!("{what} is {text:?}; an address looks like 127.0.0.1:4433"))
    };
    let mut weather = Weather {
        listen: address("LISTEN", arguments.next())?,
        node: address("NODE", arguments.next())?,
        delay: Duration::from_millis(40),
        jitter: Duration::from_millis(20),
        loss: 0.02,
        moves: None,
        seed: rand::random::<u32>().into(),
    };
    while let Some(flag) = arguments.next() {
        let text = arguments.next().ok_or_else(|| format!("{flag} needs a value"))?;
        let number = text.parse::<u64>().map_err(|_| format!("{flag} needs a number, not {text:?}"))?;
        match flag.as_str() {
            "--delay" => weather.delay = Duration::from_millis(number),
            "--jitter" => weather.jitter = Duration::from_millis(number),
            "--loss" if number <= 100 => weather.loss = number as f64 / 100.0,
            "--loss" => return Err(format!("--loss is {number}; at most 100")),
            "--move" => weather.moves = Some(Duration::from_secs(number.max(1))),
            "--seed" => weather.seed = number,
            _ => return Err(format!("there is no {flag}")),
        }
    }
    Ok(weather)
}

/// A datagram under way. The one that is due first is the greatest.
struct UnderWay {
    due: Instant,
    /// Tells those apart that are due at once, and keeps their order.
    number: u64,
    bytes: Vec<u8>,
    socket: Arc<UdpSocket>,
    to: SocketAddr,
}

impl PartialEq for UnderWay {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for UnderWay {}

impl PartialOrd for UnderWay {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for UnderWay {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.due, other.number).cmp(&(self.due, self.number))
    }
}

/// A client as the node sees it: a socket of its own.
struct Client {
    socket: Arc<UdpSocket>,
    since: Instant,
    /// Reads what the node answers; ends with the client.
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

struct Wire {
    weather: Weather,
    random: StdRng,
    listen: Arc<UdpSocket>,
    clients: BTreeMap<SocketAddr, Client>,
    under_way: BinaryHeap<UnderWay>,
    answers_in: mpsc::Sender<(SocketAddr, Vec<u8>)>,
    count: u64,
    lost: u64,
    moved: u64,
}

impl Wire {
    /// Sends a datagram on its way, or loses it.
    fn put(&mut self, bytes: Vec<u8>, socket: Arc<UdpSocket>, to: SocketAddr) {
        self.count += 1;
        if self.under_way.len() >= UNDER_WAY_MAX || self.random.random_bool(self.weather.loss) {
            self.lost += 1;
            return;
        }
        let jitter = self.weather.jitter.mul_f64(self.random.random());
        let due = Instant::now() + self.weather.delay + jitter;
        self.under_way.push(UnderWay { due, number: self.count, bytes, socket, to });
    }

    /// A client's datagram: the node gets it from the client's own socket, which changes from time to time.
    async fn take_in(&mut self, client: SocketAddr, bytes: Vec<u8>) -> std::io::Result<()> {
        let old = self.clients.get(&client).map(|known| known.since);
        let moves = old.is_some_and(|since| self.weather.moves.is_some_and(|after| since.elapsed() >= after));
        if moves {
            self.moved += 1;
            println!("{client} moves: the node hears it from another port now");
        }
        if old.is_none() && self.clients.len() >= CLIENTS_MAX {
            self.lost += 1;
            return Ok(());
        }
        if old.is_none() || moves {
            let any = if self.weather.node.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = Arc::new(UdpSocket::bind(any).await?);
            let (own, answers, node) = (Arc::clone(&socket), self.answers_in.clone(), self.weather.node);
            let reader = tokio::spawn(async move {
                let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
                while let Ok((length, from)) = own.recv_from(&mut buffer).await {
                    if from == node && answers.send((client, buffer[..length].to_vec())).await.is_err() {
                        return;
                    }
                }
            });
            self.clients.insert(client, Client { socket, since: Instant::now(), reader });
        }
        let socket = self.clients.get(&client).map(|known| Arc::clone(&known.socket));
        if let Some(socket) = socket {
            self.put(bytes, socket, self.weather.node);
        }
        Ok(())
    }

    /// Delivers what is due, and says when there is more.
    async fn deliver(&mut self) -> Option<Instant> {
        while self.under_way.peek().is_some_and(|next| next.due <= Instant::now()) {
            let Some(next) = self.under_way.pop() else { break };
            if next.socket.send_to(&next.bytes, next.to).await.is_err() {
                self.lost += 1;
            }
        }
        self.under_way.peek().map(|next| next.due)
    }
}

async fn run(weather: Weather) -> std::io::Result<()> {
    let listen = Arc::new(UdpSocket::bind(weather.listen).await?);
    println!("{} to {}: {weather:?}", listen.local_addr()?, weather.node);
    let (answers_in, mut answers) = mpsc::channel(1_024);
    let random = StdRng::seed_from_u64(weather.seed);
    let (clients, under_way) = (BTreeMap::new(), BinaryHeap::new());
    let mut wire = Wire { weather, random, listen, clients, under_way, answers_in, count: 0, lost: 0, moved: 0 };
    let listen = Arc::clone(&wire.listen);
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    let mut report = tokio::time::interval(Duration::from_secs(10));
    loop {
        let due = wire.deliver().await.unwrap_or_else(|| Instant::now() + Duration::from_secs(1));
        tokio::select! {
            received = listen.recv_from(&mut buffer) => {
                let (length, client) = received?;
                wire.take_in(client, buffer[..length].to_vec()).await?;
            }
            Some((client, bytes)) = answers.recv() => wire.put(bytes, Arc::clone(&listen), client),
            () = tokio::time::sleep_until(due) => {}
            _ = report.tick() => println!("{} datagrams, {} lost, {} moves", wire.count, wire.lost, wire.moved),
        }
    }
}

fn main() -> ExitCode {
    let weather = match parse(std::env::args().skip(1)) {
        Ok(weather) => weather,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(run(weather))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("thalweg-wire: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_are_taken_or_refused() {
        let check = |line: &str, expected: Result<(u64, f64), &str>| {
            let parsed = parse(line.split_whitespace().map(str::to_owned));
            match (parsed, expected) {
                (Ok(found), Ok(expected)) => assert_eq!((found.delay.as_millis() as u64, found.loss), expected),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
                (found, _) => panic!("{line}: {found:?}"),
            }
        };
        check("127.0.0.1:1 127.0.0.1:2", Ok((40, 0.02)));
        check("127.0.0.1:1 [::1]:2 --delay 200 --jitter 0 --loss 100 --move 5 --seed 1", Ok((200, 1.0)));
        check("", Err("LISTEN is missing"));
        check("127.0.0.1:1", Err("NODE is missing"));
        check("here there", Err("an address looks like"));
        check("127.0.0.1:1 127.0.0.1:2 --loss 101", Err("at most 100"));
        check("127.0.0.1:1 127.0.0.1:2 --storm 1", Err("no --storm"));
    }

    #[tokio::test]
    async fn datagrams_arrive_late_in_both_directions_and_from_a_port_that_moves() {
        let node = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
        let free = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound").local_addr().expect("known");
        let weather = Weather {
            listen: free,
            node: node.local_addr().expect("known"),
            delay: Duration::from_millis(5),
            jitter: Duration::from_millis(5),
            loss: 0.0,
            moves: Some(Duration::ZERO),
            seed: 1,
        };
        let wire = tokio::spawn(run(weather));
        let client = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
        let (mut buffer, mut ports) = ([0; 16], std::collections::BTreeSet::new());
        for n in 0..3_u8 {
            // The wire may not listen yet when the first is sent.
            let (length, from) = loop {
                client.send_to(&[n], free).await.expect("sent");
                let received = tokio::time::timeout(Duration::from_secs(1), node.recv_from(&mut buffer)).await;
                if let Ok(received) = received {
                    break received.expect("received");
                }
            };
            assert_eq!(&buffer[..length], [n]);
            ports.insert(from.port());
            node.send_to(&[n, n], from).await.expect("answered");
            let (length, from) = client.recv_from(&mut buffer).await.expect("received");
            assert_eq!((&buffer[..length], from), (&[n, n][..], free));
        }
        assert_eq!(ports.len(), 3, "each from another port");
        wire.abort();
    }
}
