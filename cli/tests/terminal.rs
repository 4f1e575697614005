//! The plugin in a terminal: what is drawn, what keys do, and that the terminal is afterwards what it was.
//!
//! Nothing waits for a time: the screen is looked at until it shows what is wanted, at most for [`PATIENCE`].
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "other tests need the rest")]
mod fake;

use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fake::{Cluster, list};
use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};
use serde_json::json;

/// How long anything may take to come about.
const PATIENCE: Duration = Duration::from_secs(60);
const PLUGIN: &str = env!("CARGO_BIN_EXE_kubectl-skep");

const LINES: NonZeroU16 = NonZeroU16::new(24).unwrap();
const COLUMNS: NonZeroU16 = NonZeroU16::new(100).unwrap();

/// A terminal, and what runs in it; killed and reaped at the end, also of a test that fails.
struct Terminal {
    screen: Arc<Mutex<vt100::Parser>>,
    keys: Box<dyn Write + Send>,
    child: Box<dyn Child + Send + Sync>,
    master: Option<Box<dyn MasterPty + Send>>,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    fn start(mut command: CommandBuilder) -> Self {
        let size = PtySize { rows: LINES.get(), cols: COLUMNS.get(), pixel_width: 0, pixel_height: 0 };
        let pair = native_pty_system().openpty(size).unwrap();
        command.env("TERM", "xterm-256color");
        command.env_remove("KUBECONFIG");
        command.env_remove("NO_COLOR");
        let child = pair.slave.spawn_command(command).unwrap();
        let screen = Arc::new(Mutex::new(vt100::Parser::new(LINES, COLUMNS, 0)));
        let (mut output, drawn) = (pair.master.try_clone_reader().unwrap(), screen.clone());
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // When nobody has the terminal open any more, reading fails.
            while let Ok(len @ 1..) = output.read(&mut buffer) {
                drawn.lock().unwrap().process(&buffer[..len]);
            }
        });
        let keys = pair.master.take_writer().unwrap();
        Terminal { screen, keys, child, master: Some(pair.master), reader: Some(reader) }
    }

    /// `kubectl-skep` as the cluster's user.
    fn skep(cluster: &Cluster, args: &[&str]) -> Self {
        let mut command = CommandBuilder::new(PLUGIN);
        command.args(["--request-timeout", "30s", "--kubeconfig"]);
        command.arg(cluster.kubeconfig());
        command.args(args);
        Terminal::start(command)
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// Looks at the screen until it is as wanted; its text.
    fn wait(&self, what: &str, wanted: impl Fn(&vt100::Screen) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (found, text) = {
                let parser = self.screen.lock().unwrap();
                (wanted(parser.screen()), parser.screen().contents())
            };
            if found {
                return text;
            }
            assert!(Instant::now() < deadline, "{what}: not to be seen on\n{text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_for(&self, text: &str) -> String {
        self.wait(text, |screen| screen.contents().contains(text))
    }

    /// Waits until it ended, and says whether well.
    fn ended(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            assert!(Instant::now() < deadline, "still runs:\n{}", self.screen.lock().unwrap().screen().contents());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Lines are edited and keys are echoed, as the terminal was in the beginning.
    fn is_cooked(&self) -> bool {
        let termios = self.master.as_ref().unwrap().get_termios().unwrap();
        let flags = format!("{:?}", termios.local_flags);
        flags.contains("ICANON") && flags.contains("ECHO")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // One that ended already cannot be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
        drop(self.master.take());
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Two nodes, of which the second's agent has a certificate in another's name.
async fn cluster() -> Cluster {
    let cluster = Cluster::start("node-1").await;
    let node = |name: &str| {
        let program =
            json!({"namespace": "net", "name": "flows", "revision": "7c9d5f0123", "state": "Ready", "reason": "Ready"});
        json!({"apiVersion": "skep.dev/v1alpha1", "kind": "EbpfNode", "metadata": {"name": name}, "spec": {},
               "status": {"programs": [program]}})
    };
    let nodes = list("skep.dev/v1alpha1", "EbpfNodeList", vec![node("node-1"), node("node-2")]);
    cluster.api.put("GET", "/apis/skep.dev/v1alpha1/ebpfnodes", 200, nodes);
    cluster
}

/// The names of the programs, from the top of the screen down.
fn programs(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.starts_with("node-1 ")).filter_map(|line| line.split_whitespace().nth(2)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn top_sorts_by_keys_and_leaves_the_terminal_as_it_was() {
    let cluster = cluster().await;
    let mut terminal = Terminal::skep(&cluster, &["top"]);
    terminal.wait("the function that takes most", |screen| programs(&screen.contents()) == ["flows", "dns"]);
    let text = terminal.wait_for("node-2: the connection to its agent");
    assert!(text.contains("1 node, 1 failed   2 functions   5100.0 runs/s   0.91% CPU"), "{text}");
    assert!(text.contains("CPU▼"), "{text}");
    terminal.wait("another screen without a cursor", |screen| screen.alternate_screen() && screen.hide_cursor());
    assert!(!terminal.is_cooked(), "keys come one by one");

    terminal.press("r");
    terminal.wait("the function that runs most", |screen| programs(&screen.contents()) == ["dns", "flows"]);
    terminal.press("r");
    terminal.wait("the order reversed", |screen| programs(&screen.contents()) == ["flows", "dns"]);
    terminal.press("?");
    terminal.wait_for("the same key again reverses");
    terminal.press("q");
    assert!(terminal.ended());
    terminal.wait("the screen of before", |screen| !screen.alternate_screen() && !screen.hide_cursor());
    assert!(terminal.is_cooked());
}

#[tokio::test(flavor = "multi_thread")]
async fn escape_and_interrupt_end_a_screen_too() {
    let cluster = cluster().await;
    for key in ["\u{1b}", "\u{3}"] {
        let mut terminal = Terminal::skep(&cluster, &["graph", "flows", "counts", "--node", "node-1"]);
        terminal.wait("a line that grows", |screen| screen.contents().lines().any(|line| line.ends_with('█')));
        terminal.press(key);
        assert!(terminal.ended());
        terminal.wait("the screen of before", |screen| !screen.alternate_screen() && !screen.hide_cursor());
        assert!(terminal.is_cooked());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_told_on_the_screen_of_before() {
    let cluster = cluster().await;
    let mut terminal = Terminal::skep(&cluster, &["top", "--node", "node-2"]);
    assert!(!terminal.ended());
    terminal.wait_for("error: node node-2: the connection to its agent");
    terminal.wait("the screen of before", |screen| !screen.alternate_screen() && !screen.hide_cursor());
    assert!(terminal.is_cooked());
}

#[tokio::test(flavor = "multi_thread")]
async fn bars_change_in_place() {
    let cluster = cluster().await;
    let args = ["hist", "flows", "sizes", "--node", "node-1", "--scale", "linear", "--live", "100ms"];
    let mut terminal = Terminal::skep(&cluster, &args);
    // The last bucket counts 6, then 12, 18, ...
    let last = |screen: &vt100::Screen| -> Option<u64> {
        let text = screen.contents();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        let mut counts = lines.iter().filter(|words| words.len() == 3 && words[0] == "3").map(|words| words[1]);
        let count = counts.next()?.parse().ok()?;
        // One histogram, not one below the other.
        (counts.next().is_none() && text.contains(&"#".repeat(40))).then_some(count)
    };
    terminal.wait("bars", |screen| last(screen).is_some());
    let first = last(terminal.screen.lock().unwrap().screen()).unwrap_or(0);
    terminal.wait("longer bars in their place", |screen| last(screen).is_some_and(|count| count > first.max(6)));
    terminal.press("\u{3}");
    terminal.ended();
}

#[test]
fn bash_completes_commands() {
    let found = std::process::Command::new("bash").args(["--norc", "-c", "complete -p >/dev/null"]).status();
    if !found.is_ok_and(|status| status.success()) {
        println!("skipped: this machine has no bash, or one without completion");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let mut command = CommandBuilder::new("bash");
    command.args(["--norc", "--noprofile", "-i"]);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", Path::new(PLUGIN).parent().unwrap().display()));
    command.env("HOME", home.path());
    command.env("PS1", "ready> ");
    let mut terminal = Terminal::start(command);
    terminal.wait_for("ready> ");
    terminal.press("source <(kubectl-skep completion bash) && echo so''urced\n");
    terminal.wait_for("sourced");
    terminal.press("kubectl-skep ma\t");
    terminal.wait_for("kubectl-skep maps ");
    // After it there is a blank already.
    terminal.press("d\t\t");
    let text = terminal.wait("what there is", |screen| {
        let text = screen.contents();
        ["drain", "dump", "del"].iter().all(|name| text.contains(name))
    });
    assert!(!text.contains("watch"), "{text}");
}
