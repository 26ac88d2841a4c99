//! Questions over HTTP: streams of `/v1/chat/completions` or `/v1/completions`, each reader on a connection of its own.
//!
//! One thread over `ppoll`, as for QUIC, and no client library: what it does to a figure is a read and a look at the bytes.
//! Any server that speaks this interface can be measured.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::fd::AsRawFd;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::answer::{Answer, Event};
use super::book::{Book, Turn, is_other};
use super::questions::{NEVER, Question, Questions};
use crate::cli::{Context, Idle, TokensArgs};
use crate::clock::Clock;
use crate::error::LoadError;
use crate::process::Process;
use crate::report::Row;
use crate::swarm::{pollfd, wait_for};

/// How long a connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long the list of models may take.
const MODELS_LIMIT: Duration = Duration::from_secs(10);
/// The book is looked at this often at least.
const TURN: Duration = Duration::from_millis(100);
/// Bytes taken from a connection at a time.
const READ_BYTES: usize = 64 << 10;
/// Characters of a server's complaint that are shown.
const COMPLAINT_CHARS: usize = 500;

/// A reader's connection.
struct Line {
    /// `None` when the server closed it between two answers.
    stream: Option<TcpStream>,
    out: Vec<u8>,
    sent: usize,
    answer: Answer,
    /// What the answer said about its tokens.
    tokens: Option<u32>,
    /// Whether the connection carried an answer before this one.
    reused: bool,
}

struct Http<'a> {
    args: &'a TokensArgs,
    server: SocketAddr,
    host: &'a str,
    token: &'a str,
    model: String,
    clock: Clock,
    lines: Vec<Line>,
    questions: Questions<'a>,
    book: Book,
}

pub(super) fn run(args: &TokensArgs, host: &str, context: &Context) -> Result<Vec<Row>, LoadError> {
    let usage = |reason: String| LoadError::Usage(format!("--http {host}: {reason}; give it as HOST:PORT"));
    let mut addresses = host.to_socket_addrs().map_err(|error| usage(error.to_string()))?;
    let server = addresses.next().ok_or_else(|| usage("the name has no address".into()))?;
    let token = context.target.token.as_str();
    let model = match &args.model {
        Some(model) => model.clone(),
        None => first_model(server, host, token)?,
    };
    let clock = Clock::new();
    let lines = (0..args.concurrency).map(|_| Line::open(server)).collect::<Result<_, _>>()?;
    // Another machine's server is not the process whose time is known here.
    let server_cpu = || if server.ip().is_loopback() { context.server_cpu() } else { Ok(None) };
    let (own, cpu_before) = (Process::own(), server_cpu()?);
    let own_before = own.cpu_seconds()?;
    let (questions, book) = (Questions::new(args), Book::new(args, clock.now_ns()));
    let mut http = Http { args, server, host, token, model, clock, lines, questions, book };
    (0..args.concurrency).try_for_each(|asker| http.ask(asker))?;
    http.serve(context.idle.unwrap_or(Idle::Park))?;
    let cpu = cpu_before.zip(server_cpu()?).map(|(before, after)| after - before);
    Ok(http.book.rows(cpu, own.cpu_seconds()? - own_before, true))
}

impl Http<'_> {
    /// Runs until every question is answered.
    fn serve(&mut self, idle: Idle) -> Result<(), LoadError> {
        let mut room = vec![0; READ_BYTES];
        loop {
            match self.book.turn(self.clock.now_ns())? {
                Turn::Over => return Ok(()),
                // Who reads again is polled for again, below.
                Turn::Resume(_) | Turn::Wait => {}
            }
            let waiting = self.lines.iter().enumerate().filter_map(|(asker, line)| {
                let unsent = if line.sent < line.out.len() { libc::POLLOUT } else { 0 };
                let reads = self.book.is_busy(asker) && !self.book.is_stopped(asker);
                let events = unsent | if reads { libc::POLLIN } else { 0 };
                let stream = line.stream.as_ref().filter(|_| events != 0)?;
                Some((asker, pollfd(stream.as_raw_fd(), events)))
            });
            let (askers, mut fds): (Vec<usize>, Vec<libc::pollfd>) = waiting.unzip();
            wait_for(&mut fds, if idle == Idle::Spin { Duration::ZERO } else { TURN })?;
            for (asker, fd) in askers.into_iter().zip(fds).filter(|(_, fd)| fd.revents != 0) {
                if fd.revents & libc::POLLOUT != 0 {
                    self.lines[asker].flush(self.server)?;
                }
                if fd.revents & (libc::POLLIN | libc::POLLHUP | libc::POLLERR) != 0 {
                    self.receive(asker, &mut room)?;
                }
            }
        }
    }

    fn ask(&mut self, asker: usize) -> Result<(), LoadError> {
        let question = self.questions.next();
        let token = match &self.args.other_token {
            Some(other) if is_other(self.args, asker) => other.as_str(),
            _ => self.token,
        };
        let path = if self.args.raw { "/v1/completions" } else { "/v1/chat/completions" };
        let out = post(self.host, path, token, &body(self.args, &self.model, &question));
        if self.lines[asker].stream.is_none() {
            self.lines[asker] = Line::open(self.server)?;
        }
        let line = &mut self.lines[asker];
        (line.out, line.sent, line.tokens) = (out, 0, None);
        self.book.asked(asker, question.length, self.clock.now_ns());
        line.flush(self.server)
    }

    fn receive(&mut self, asker: usize, room: &mut [u8]) -> Result<(), LoadError> {
        let line = &mut self.lines[asker];
        let Some(stream) = line.stream.as_mut() else { return Ok(()) };
        let mut events = Vec::new();
        let wrong = |reason: String| LoadError::Protocol(format!("over HTTP: {reason}"));
        let result = stream.read(room);
        match result {
            // A server may close a connection that it had kept, and learn of our request too late: it is asked again, and
            // what that takes counts.
            Ok(0) | Err(_) if closed(&result) && line.reused && line.answer.is_untouched() => {
                let out = std::mem::take(&mut line.out);
                *line = Line { out, ..Line::open(self.server)? };
                return line.flush(self.server);
            }
            Ok(0) => {
                line.answer.close(&mut events).map_err(|reason| LoadError::Lost { server: self.server, reason })?;
                line.stream = None;
            }
            Ok(count) => line.answer.push(&room[..count], &mut events).map_err(wrong)?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(LoadError::Lost { server: self.server, reason: error.to_string() }),
        }
        let at_ns = self.clock.now_ns();
        for event in events {
            match event {
                Event::Piece => {
                    // A reader that stops here stops reading; what the kernel holds already comes when it goes on.
                    self.book.arrived(asker, 1, at_ns);
                }
                Event::Tokens(tokens) => self.lines[asker].tokens = Some(tokens),
                Event::Document(status, body) => return Err(self.complaint(status, &body)),
                Event::End(keep) => {
                    let tokens = self.lines[asker].tokens.unwrap_or_else(|| self.book.got(asker));
                    self.book.ended(asker, tokens);
                    let line = &mut self.lines[asker];
                    line.reused = true;
                    if !keep {
                        line.stream = None;
                    }
                    if self.book.has_more() {
                        self.ask(asker)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn complaint(&self, status: u16, body: &str) -> LoadError {
        LoadError::Http { server: self.server, status, body: body.chars().take(COMPLAINT_CHARS).collect() }
    }
}

impl Line {
    fn open(server: SocketAddr) -> Result<Self, LoadError> {
        let unreachable = |error: io::Error| LoadError::Unreachable { server, reason: error.to_string() };
        let stream = TcpStream::connect_timeout(&server, CONNECT_LIMIT).map_err(unreachable)?;
        stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true)).map_err(unreachable)?;
        Ok(Self { stream: Some(stream), out: Vec::new(), sent: 0, answer: Answer::new(), tokens: None, reused: false })
    }

    /// Sends what the kernel takes of the request.
    fn flush(&mut self, server: SocketAddr) -> Result<(), LoadError> {
        let Some(stream) = self.stream.as_mut() else { return Ok(()) };
        while self.sent < self.out.len() {
            match stream.write(&self.out[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(LoadError::Lost { server, reason: error.to_string() }),
            }
        }
        Ok(())
    }
}

/// Whether a read says that there is no connection any more.
fn closed(result: &io::Result<usize>) -> bool {
    match result {
        Ok(count) => *count == 0,
        Err(error) => matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe),
    }
}

/// The body of a request.
fn body(args: &TokensArgs, model: &str, question: &Question) -> Vec<u8> {
    let mut body = json!({
        "model": model, "max_tokens": question.length, "temperature": args.temperature, "seed": question.seed,
        "stream": true, "stream_options": { "include_usage": true },
    });
    if !args.never.is_empty() {
        let bias: Map<String, Value> = args.never.iter().map(|token| (token.to_string(), json!(NEVER))).collect();
        body["logit_bias"] = bias.into();
    }
    let system = question.system.as_deref();
    if args.raw {
        body["prompt"] = format!("{}{}", system.unwrap_or_default(), question.prompt).into();
    } else {
        let system = system.map(|content| json!({ "role": "system", "content": content }));
        let user = json!({ "role": "user", "content": question.prompt });
        body["messages"] = system.into_iter().chain([user]).collect();
    }
    body.to_string().into_bytes()
}

/// A whole request.
fn post(host: &str, path: &str, token: &str, body: &[u8]) -> Vec<u8> {
    let mut out = head("POST", host, path, token).into_bytes();
    out.extend_from_slice(
        format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(),
    );
    out.extend_from_slice(body);
    out
}

fn head(method: &str, host: &str, path: &str, token: &str) -> String {
    let bearer = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
    format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: thalweg-load\r\n{bearer}")
}

/// The first model that the server lists.
fn first_model(server: SocketAddr, host: &str, token: &str) -> Result<String, LoadError> {
    let lost = |error: io::Error| LoadError::Lost { server, reason: error.to_string() };
    let unreachable = |error: io::Error| LoadError::Unreachable { server, reason: error.to_string() };
    let mut stream = TcpStream::connect_timeout(&server, CONNECT_LIMIT).map_err(unreachable)?;
    stream.set_read_timeout(Some(MODELS_LIMIT)).map_err(lost)?;
    let request = format!("{}Connection: close\r\n\r\n", head("GET", host, "/v1/models", token));
    stream.write_all(request.as_bytes()).map_err(lost)?;
    let (mut answer, mut events, mut room) = (Answer::new(), Vec::new(), vec![0; READ_BYTES]);
    let wrong = |reason: String| LoadError::Protocol(format!("GET /v1/models: {reason}"));
    loop {
        match stream.read(&mut room).map_err(lost)? {
            0 => answer.close(&mut events).map_err(wrong)?,
            count => answer.push(&room[..count], &mut events).map_err(wrong)?,
        }
        let Some(Event::Document(status, body)) = events.first() else { continue };
        if *status != 200 {
            return Err(LoadError::Http {
                server,
                status: *status,
                body: body.chars().take(COMPLAINT_CHARS).collect(),
            });
        }
        let value: Value = serde_json::from_str(body).map_err(|error| wrong(format!("no JSON: {error}")))?;
        let name = value["data"][0]["id"].as_str().map(str::to_owned);
        return name.ok_or_else(|| wrong("it lists no model; name one with --model".into()));
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufRead as _;
    use std::net::TcpListener;

    use clap::Parser as _;

    use super::*;
    use crate::cli::Target;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        tokens: TokensArgs,
    }

    /// A server that answers `answers` requests, each with `answer`; gives the requests.
    fn server(answer: &'static str, answers: usize) -> (SocketAddr, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let run = move || {
            let (stream, _) = listener.accept().expect("a client");
            let (mut reader, mut writer) = (io::BufReader::new(stream.try_clone().expect("a socket")), stream);
            let request = |reader: &mut io::BufReader<TcpStream>| {
                let (mut text, mut length) = (String::new(), 0);
                while !text.ends_with("\r\n\r\n") {
                    let start = text.len();
                    assert!(reader.read_line(&mut text).expect("bytes") > 0, "a whole request");
                    if let Some(n) = text[start..].to_ascii_lowercase().strip_prefix("content-length:") {
                        length = n.trim().parse().expect("a number");
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).expect("a body");
                text + &String::from_utf8(body).expect("text")
            };
            (0..answers)
                .map(|_| {
                    let text = request(&mut reader);
                    writer.write_all(answer.as_bytes()).expect("the client reads");
                    text
                })
                .collect()
        };
        (address, std::thread::spawn(run))
    }

    fn measure(line: &str, server: SocketAddr) -> Result<Vec<Row>, LoadError> {
        let cli = Cli::parse_from(std::iter::once("tokens").chain(line.split_whitespace()));
        let target = Target { server, server_key: None, token: "secret".into(), server_pid: None };
        run(&cli.tokens, &server.to_string(), &Context { target, server: None, idle: None })
    }

    const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 142\r\n\r\n\
        data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: {\"choices\":[{\"text\":\"b\"}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"completion_tokens\":3}}\n\ndata: [DONE]\n\n      ";

    #[test]
    fn questions_are_asked_one_after_the_other_and_counted() {
        let (address, requests) = server(GOOD, 2);
        let rows = measure("--asks 2 --model m --raw --length 3 --never 7 --prompt hello", address).expect("rows");
        let requests = requests.join().expect("the server ends");
        for request in &requests {
            assert!(request.starts_with("POST /v1/completions HTTP/1.1\r\n"), "{request}");
            assert!(request.contains("Authorization: Bearer secret\r\n") && request.contains("\"prompt\":\"hello\""));
            assert!(request.contains("\"logit_bias\":{\"7\":-100.0}"), "{request}");
        }
        assert_eq!((rows[0].count, rows[1].extra["tokens"].clone()), (2, 6.into()));
        assert_eq!(rows[1].extra["tokens_per_piece"], 1.5);
        assert_eq!(rows[0].extra["answers_shorter_than_asked"], 0);
    }

    /// As llama.cpp's does after every stream.
    #[test]
    fn a_server_that_closes_what_it_promised_to_keep_is_asked_again() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let server = std::thread::spawn(move || {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut seen = Vec::new();
                while !seen.ends_with(b"}") {
                    let mut room = [0; 4_096];
                    let count = stream.read(&mut room).expect("bytes");
                    seen.extend_from_slice(&room[..count]);
                }
                stream.write_all(GOOD.as_bytes()).expect("the client reads");
            }
        });
        let rows = measure("--asks 2 --model m --raw", address).expect("rows");
        server.join().expect("the server ends");
        assert_eq!((rows[0].count, rows[1].extra["tokens"].clone()), (2, 6.into()));
    }

    #[test]
    fn a_refusal_is_shown() {
        let refusal = "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 20\r\n\r\n{\"error\":\"be quiet\"}";
        let (address, requests) = server(refusal, 1);
        let error = measure("--model m", address).expect_err("refused");
        assert!(requests.join().expect("the server ends")[0].starts_with("POST /v1/chat/completions"));
        assert!(matches!(&error, LoadError::Http { status: 429, .. }) && error.exit_code() == 4, "{error}");
        assert!(error.to_string().contains("be quiet"), "{error}");
    }
}
