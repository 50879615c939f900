//! The real binary, run as a user runs it: its exit code, what it writes to stderr, its memory, and signals to it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{PATIENCE, eventually};

/// A run of the real binary, to be.
pub(crate) struct Replay {
    command: Command,
}

/// What came of it.
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    /// With the quotes inside values as they were, not escaped as the log line has them.
    pub(crate) stderr: String,
    /// The greatest resident memory, in kB, as last seen.
    pub(crate) peak_kb: u64,
}

impl Output {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

impl Replay {
    pub(crate) fn new(provider: &str, subscriber: &str) -> Self {
        Self::command(&[
            "replay",
            "--provider",
            provider,
            "--subscriber",
            subscriber,
            "--queue",
            "q",
            "--consumer",
            "c",
        ])
    }

    /// Any command of it.
    pub(crate) fn command(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_consumer"));
        command.args(arguments);
        command
            .env_remove("PGCASCADE_FAILPOINTS")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Self { command }
    }

    pub(crate) fn args(mut self, arguments: &[&str]) -> Self {
        self.command.args(arguments);
        self
    }

    pub(crate) fn arg(self, argument: &str) -> Self {
        self.args(&[argument])
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn failpoints(mut self, points: &str) -> Self {
        self.command.env("PGCASCADE_FAILPOINTS", points);
        self
    }

    /// What it prints goes into that file.
    pub(crate) fn stdout_to(mut self, path: &str) -> Self {
        let file = std::fs::File::create(path).expect("a file that can be written");
        self.command.stdout(file);
        self
    }

    /// Starts it.
    pub(crate) fn spawn(mut self) -> Running {
        let mut child = self.command.spawn().expect("the consumer can be run");
        let stderr = Arc::new(Mutex::new(String::new()));
        let pipe = BufReader::new(child.stderr.take().expect("a pipe"));
        let lines = Arc::clone(&stderr);
        let reader = std::thread::spawn(move || {
            for line in pipe.split(b'\n').map_while(Result::ok) {
                let mut text = lines.lock().expect("no panic in between");
                text.push_str(&String::from_utf8_lossy(&line));
                text.push('\n');
            }
        });
        Running {
            child,
            stderr,
            reader: Some(reader),
            peak_kb: 0,
        }
    }

    /// Runs it to its end, which must be a good one, and returns what it printed.
    pub(crate) fn stdout(mut self) -> String {
        let output = self
            .command
            .stdout(Stdio::piped())
            .output()
            .expect("the consumer can be run");
        let printed = String::from_utf8(output.stdout).expect("text");
        assert!(
            output.status.success(),
            "{}: {}{printed}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        printed
    }

    /// Runs it to its end.
    pub(crate) async fn output(self) -> Output {
        self.spawn().wait().await
    }
}

/// A run of the binary. Killed when dropped.
pub(crate) struct Running {
    child: Child,
    stderr: Arc<Mutex<String>>,
    reader: Option<std::thread::JoinHandle<()>>,
    peak_kb: u64,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote so far.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().expect("no panic in between").replace("\\\"", "\"")
    }

    /// Waits for its end, twenty minutes at most.
    pub(crate) async fn wait(mut self) -> Output {
        let deadline = Instant::now() + 4 * PATIENCE;
        loop {
            self.look_at_memory();
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                if let Some(reader) = self.reader.take() {
                    let _ = reader.join();
                }
                return Output {
                    status,
                    stderr: self.stderr(),
                    peak_kb: self.peak_kb,
                };
            }
            if Instant::now() >= deadline {
                let said = self.stderr();
                let last: Vec<&str> = said.lines().rev().take(3).collect();
                // Of a long text the end of a run of all tests shows the first line.
                panic!("the consumer did not end, and said at last (backwards) {last:?}, in all:\n{said}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.pid().to_string())
            .status()
            .expect("kill can be run");
        assert!(sent.success());
    }

    /// SIGTERM, as soon as it listens for signals, and an exit code of 0.
    pub(crate) async fn stop(self) -> Output {
        let path = format!("/proc/{}/status", self.pid());
        eventually("the consumer listens for signals", async || {
            let status = std::fs::read_to_string(&path).unwrap_or_default();
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
            let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
            // It may have ended by itself.
            status.contains("State:\tZ") || caught.is_none_or(|mask| mask & (1 << 14) != 0)
        })
        .await;
        self.signal("TERM");
        let output = self.wait().await;
        assert_eq!(output.code(), Some(0), "{}", output.stderr);
        output
    }

    /// SIGKILL.
    pub(crate) async fn kill(self) -> Output {
        self.signal("KILL");
        self.wait().await
    }

    pub(crate) async fn until_it_says(&self, text: &str) {
        eventually(&format!("the consumer says \"{text}\""), async || {
            self.stderr().contains(text)
        })
        .await;
    }

    fn look_at_memory(&mut self) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        if let Some(line) = status.lines().find(|line| line.starts_with("VmHWM:")) {
            self.peak_kb = line
                .split_whitespace()
                .nth(1)
                .and_then(|kb| kb.parse().ok())
                .unwrap_or(0)
                .max(self.peak_kb);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("The consumer that was running said:\n{}", self.stderr());
        }
    }
}
