//! The chat over a whole terminal, driven as a person would: the real binary, in a terminal multiplexer, on a real node.

mod binary;

use std::process::{Command, Stdio};

use binary::{Home, Node, eventually};

/// A multiplexer of its own; it ends with the test.
struct Multiplexer<'a> {
    home: &'a Home,
    socket: String,
}

impl<'a> Multiplexer<'a> {
    /// `None`, said why, where there is none.
    fn start(home: &'a Home) -> Option<Self> {
        let version = Command::new("tmux").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !version.is_ok_and(|status| status.success()) {
            println!("skipped: there is no tmux; install it to test the terminal client");
            return None;
        }
        Some(Self { home, socket: home.path("tmux").display().to_string() })
    }

    fn run(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("tmux");
        command.args(["-S", &self.socket, "-f", "/dev/null", "-u"]).args(arguments);
        let output = command.env("LC_ALL", "C.UTF-8").env_remove("TMUX").stdin(Stdio::null()).output();
        let output = output.expect("tmux runs");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Opens a terminal of 80 by 20 in which `thalweg` runs with these arguments; says how that ended when it has.
    fn open(&self, name: &str, line: &str) {
        let state = self.home.path("state").display().to_string();
        let program = env!("CARGO_BIN_EXE_thalweg");
        let unset = "-u THALWEG_SERVER -u THALWEG_TOKEN -u THALWEG_DATA -u NO_COLOR";
        let shell = format!(
            "env {unset} XDG_STATE_HOME='{state}' TZ=UTC '{program}' {line}; echo \"ended with $?\"; read -r _"
        );
        self.run(&["new-session", "-d", "-s", name, "-x", "80", "-y", "20", &shell]);
    }

    fn types(&self, name: &str, text: &str) {
        self.run(&["send-keys", "-t", name, "-l", text]);
        self.key(name, "Enter");
    }

    fn key(&self, name: &str, key: &str) {
        self.run(&["send-keys", "-t", name, key]);
    }

    /// Pastes a text as terminals do that do not mark pastes.
    fn pastes(&self, name: &str, text: &str) {
        let file = self.home.path("pasted");
        std::fs::write(&file, text).expect("a file");
        self.run(&["load-buffer", &file.display().to_string()]);
        self.run(&["paste-buffer", "-d", "-t", name]);
    }

    fn screen(&self, name: &str) -> String {
        self.run(&["capture-pane", "-p", "-t", name])
    }

    /// Waits until the screen shows all of these.
    fn shows(&self, name: &str, wanted: &[&str]) {
        eventually(&format!("{wanted:?} on the screen of {name}"), || {
            let screen = self.screen(name);
            let there = wanted.iter().all(|text| screen.contains(text));
            if !there && std::env::var_os("THALWEG_SHOW").is_some() {
                println!("{screen}");
            }
            there
        });
    }
}

impl Drop for Multiplexer<'_> {
    fn drop(&mut self) {
        let mut command = Command::new("tmux");
        command.args(["-S", &self.socket, "kill-server"]).stdout(Stdio::null()).stderr(Stdio::null());
        drop(command.status());
    }
}

/// The line with this text, without what stands beside it.
fn line<'s>(screen: &'s str, text: &str) -> &'s str {
    screen.lines().find(|line| line.contains(text)).unwrap_or_default()
}

fn serve(home: &Home, port: &str) -> Node {
    home.serve(&format!("--no-model --quic 127.0.0.1:{port}"))
}

#[test]
fn two_people_talk_over_a_restart_of_their_node() {
    let home = Home::new();
    let Some(terminals) = Multiplexer::start(&home) else { return };
    // Below the ports the system gives out: nobody takes it while the node is away.
    let port = (10_000 + std::process::id() % 10_000).to_string();
    let node = serve(&home, &port);
    for user in ["ada", "grace"] {
        let token = home.run(&format!("admin token --user {user}"), b"").stdout;
        terminals.open(user, &format!("chat lobby --token {}", token.trim()));
        terminals.shows(user, &["#lobby", &format!("● {user}")]);
    }
    // Each sees the other come.
    terminals.shows("ada", &["● grace"]);

    terminals.types("ada", "hello grace, meet \u{1f600} and 日本語");
    terminals.shows("grace", &["ada", "hello grace, meet \u{1f600} and 日本語"]);
    terminals.key("grace", "Tab");
    terminals.shows("grace", &["r reply"]);
    terminals.key("grace", "r");
    terminals.types("grace", "hello yourself");
    terminals.shows("ada", &["┌ ada: hello grace", "hello yourself", "↳ 1 reply"]);
    terminals.types("ada", "/react :tada:");
    terminals.shows("grace", &["\u{1f389} 1"]);

    // Half a line tells that somebody types.
    terminals.run(&["send-keys", "-t", "grace", "-l", "well"]);
    terminals.shows("ada", &["grace is typing"]);
    terminals.key("grace", "C-u");

    // The node goes, and comes back; what was written meanwhile waits.
    let quic = node.quic.clone();
    assert_eq!(node.terminate(), Some(0));
    terminals.shows("ada", &["reconnecting (", "try "]);
    terminals.types("ada", "anybody there?");
    terminals.shows("ada", &["anybody there? … sending", "1 message waits"]);
    let _node = serve(&home, quic.rsplit(':').next().expect("a port"));
    terminals.shows("grace", &["anybody there?"]);
    terminals.shows("ada", &["● ada"]);
    eventually("ada's line to be confirmed", || {
        let screen = terminals.screen("ada");
        !line(&screen, "anybody there?").contains("sending") && !screen.contains("reconnecting")
    });

    // Commands, help, and a small screen.
    terminals.types("ada", "/topic what we talk about");
    terminals.shows("grace", &["#lobby · what we talk about"]);
    terminals.key("grace", "F1");
    terminals.shows("grace", &["Help", "Alt-Enter"]);
    terminals.key("grace", "Escape");
    terminals.run(&["resize-window", "-t", "grace", "-x", "40", "-y", "12"]);
    terminals.shows("grace", &["#lobby", "● grace"]);

    // What they leave is the terminal they came from.
    terminals.types("ada", "/quit");
    terminals.shows("ada", &["ended with 0"]);
    assert!(!terminals.screen("ada").contains("#lobby"), "{}", terminals.screen("ada"));
    terminals.key("grace", "C-c");
    terminals.shows("grace", &["again to leave"]);
    terminals.key("grace", "C-c");
    terminals.shows("grace", &["ended with 0"]);
}

#[test]
fn hostile_messages_do_not_reach_the_terminal() {
    let home = Home::new();
    let Some(terminals) = Multiplexer::start(&home) else { return };
    let _node = serve(&home, "0");
    terminals.open("ada", "chat lobby --theme plain");
    terminals.shows("ada", &["#lobby", "● "]);
    let attack = b"\x1b[2J\x1b[H\x1b]0;owned\x07\x1b[31mred \xe2\x80\xaegpj.exe \xc2\x9b2J end\n";
    assert_eq!(home.run("pub lobby", attack).code, Some(0));
    terminals.shows("ada", &["\u{241b}[2J\u{241b}[H\u{241b}]0;owned\u{2407}", "\u{fffd}gpj.exe", "#lobby"]);
    assert_ne!(terminals.run(&["display-message", "-p", "-t", "ada", "#{pane_title}"]).trim(), "owned");
    // A signal gives the terminal back as well.
    let pane = terminals.run(&["display-message", "-p", "-t", "ada", "#{pane_pid}"]);
    let children = Command::new("pgrep").args(["-P", pane.trim(), "-f", "chat"]).output();
    if let Some(child) = children.ok().and_then(|found| String::from_utf8_lossy(&found.stdout).trim().parse().ok()) {
        binary::signal(child, "TERM");
        terminals.shows("ada", &["ended with 0"]);
        assert!(!terminals.screen("ada").contains("#lobby"));
    }
}

/// What was pasted without marks is more than one read of the terminal: it used to stop after 1,024 bytes until a key came.
#[test]
fn what_is_pasted_as_keys_arrives_whole() {
    let home = Home::new();
    let Some(terminals) = Multiplexer::start(&home) else { return };
    let _node = serve(&home, "0");
    let line = "0123456789 ".repeat(100);
    terminals.open("chat", "chat lobby");
    terminals.shows("chat", &["#lobby", "● local"]);
    terminals.pastes("chat", &line);
    terminals.key("chat", "Enter");
    eventually("the whole message", || home.run("sub lobby --from start --count 1", b"").stdout.contains(line.trim()));

    terminals.open("edit", "edit notes");
    terminals.shows("edit", &["notes", "all changes saved"]);
    let text: String = (0..1_000).map(|line| format!("line {line} of what is pasted\n")).collect();
    terminals.pastes("edit", &text);
    eventually("the whole text", || home.run("doc get notes", b"").stdout == text);
    terminals.shows("edit", &["all changes saved"]);
    // Nothing of it is lost by leaving at once.
    terminals.pastes("edit", &text);
    terminals.key("edit", "C-q");
    terminals.shows("edit", &["ended with 0"]);
    assert_eq!(home.run("doc get notes", b"").stdout, text.repeat(2));
}

#[test]
fn a_document_that_is_deleted_under_an_editor_ends_it_as_a_failure() {
    let home = Home::new();
    let Some(terminals) = Multiplexer::start(&home) else { return };
    let _node = serve(&home, "0");
    terminals.open("edit", "edit notes");
    terminals.shows("edit", &["all changes saved"]);
    terminals.types("edit", "text");
    eventually("the text", || home.run("doc get notes", b"").stdout == "text\n");
    home.run("doc rm notes", b"");
    terminals.shows("edit", &["it is over", "notes was deleted"]);
    terminals.key("edit", "C-q");
    terminals.shows("edit", &["notes was deleted", "ended with 5"]);
}

#[test]
fn half_a_terminal_is_refused_with_what_to_do() {
    let home = Home::new();
    let Some(terminals) = Multiplexer::start(&home) else { return };
    let _node = serve(&home, "0");
    terminals.open("piped", "chat lobby < /dev/null");
    terminals.shows("piped", &["standard input is not a terminal", "--plain", "ended with 2"]);
    terminals.open("dumb", "chat lobby --plain");
    terminals.shows("dumb", &["You are", "in lobby"]);
    terminals.types("dumb", "/quit");
    terminals.shows("dumb", &["ended with 0"]);
}
