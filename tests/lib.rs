//! Whole runs through the binary: a scratch folder, a `dlm` in a clean environment, and what it printed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    time::{Duration, Instant},
};

/// The repository's root.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository exists")
}

/// A scratch folder in which a user works; removed when dropped.
#[derive(Debug)]
pub struct Scratch {
    folder: tempfile::TempDir,
    program: PathBuf,
}

impl Scratch {
    /// An empty folder, and the program under test (`env!("CARGO_BIN_EXE_dlm-under-test")`).
    ///
    /// # Panics
    /// When no temporary folder can be made.
    #[must_use]
    pub fn new(program: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("dlm-test-").tempdir().expect("a temporary folder");
        Self { folder, program: program.into() }
    }

    /// The path of `name` in the folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file, making folders as needed, and gives its path.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder above")).expect("a writable folder");
        fs::write(&path, content).expect("a writable file");
        path
    }

    /// Reads a file of the folder.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Prepares texts, each with an end token, in rows of that many tokens; they lie in the folder `data`.
    ///
    /// # Panics
    /// When that fails.
    pub fn prepare(&self, texts: impl IntoIterator<Item = String>, tokenizer: &Path, sequence_len: usize) {
        let rows = texts.into_iter().map(|text| format!("{}\n", serde_json::json!({ "text": text })));
        self.write("rows.jsonl", rows.collect::<String>());
        self.write(
            "pipeline.toml",
            format!(
                "[[source]]\npath = \"rows.jsonl\"\n[[step]]\ntokenize = {{ tokenizer = {tokenizer:?}, add_eos = true }}\n\
                 [[step]]\npack = {{ sequence_len = {sequence_len} }}\n[output]\npath = \"data\"\n"
            ),
        );
        self.succeed(&["data", "prepare", "pipeline.toml"]);
    }

    /// The objects of a JSON Lines file of the folder.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn json_lines(&self, name: &str) -> Vec<serde_json::Value> {
        self.read(name).lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect()
    }

    /// A command that runs dlm in the folder, without settings or credentials of the person who tests.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).current_dir(self.folder.path()).env("NO_COLOR", "1");
        for (name, _) in std::env::vars_os() {
            let name_text = name.to_string_lossy();
            if name_text.starts_with("DLM_") || name_text.starts_with("WANDB_") {
                command.env_remove(&name);
            }
        }
        // Two threads on every machine: results are bit-equal for equal thread counts only.
        command.env("DLM_THREADS", "2");
        command
    }

    /// Runs dlm and gives what it printed.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn run(&self, arguments: &[&str]) -> Finished {
        Finished::from(self.command(arguments).output().expect("the program starts"))
    }

    /// Waits until the run in `output` has a checkpoint, then says whether it is still running.
    ///
    /// # Panics
    /// When the run fails before, or takes longer than two minutes.
    pub fn wait_for_a_checkpoint(&self, output: &str, child: &mut Child) -> bool {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let has_one = fs::read_dir(self.path(output)).is_ok_and(|mut entries| {
                entries.any(|entry| entry.is_ok_and(|e| e.file_name().to_string_lossy().starts_with("checkpoint-")))
            });
            if let Some(status) = child.try_wait().expect("the state of the run") {
                assert!(status.success(), "the run failed before its first checkpoint");
                return false;
            }
            if has_one {
                return true;
            }
            assert!(Instant::now() < deadline, "no checkpoint within two minutes");
            std::thread::sleep(Duration::from_millis(5)); // polls a condition; the deadline above is its end
        }
    }

    /// Runs dlm, which has to succeed, and gives its standard output.
    ///
    /// # Panics
    /// When it fails.
    pub fn succeed(&self, arguments: &[&str]) -> String {
        let finished = self.run(arguments);
        assert_eq!(finished.code, Some(0), "dlm {}\n{}\n{}", arguments.join(" "), finished.stdout, finished.stderr);
        finished.stdout
    }

    /// Runs dlm, which has to fail with `code`, naming each of `parts` on standard error, without a panic.
    ///
    /// # Panics
    /// When it does otherwise.
    pub fn refuse(&self, arguments: &[&str], code: i32, parts: &[&str]) {
        let finished = self.run(arguments);
        let shown = format!("dlm {}\n{}\n{}", arguments.join(" "), finished.stdout, finished.stderr);
        assert_eq!(finished.code, Some(code), "{shown}");
        assert!(!finished.stderr.contains("panicked"), "{shown}");
        // Reports wrap at the terminal's width: compare words, not lines.
        let words = |text: &str| text.split(|c: char| c.is_whitespace() || "│╰╭─▶×".contains(c)).collect::<String>();
        for part in parts {
            assert!(words(&finished.stderr).contains(&words(part)), "`{part}` is not named:\n{shown}");
        }
    }
}

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}
