//! What a run is called, where it goes and how patient it is.

use std::{path::PathBuf, time::Duration};

use reqwest::Url;

use crate::{
    credentials::{self, ApiKey},
    error::{Result, WandbError},
};

/// Settings of a run.
///
/// Built from the environment, then overridden field by field: explicit values win over the environment, the
/// environment over the netrc file.
///
/// ```
/// use dlm_wandb::Settings;
/// let settings = Settings { project: "poems".into(), ..Settings::from_environment()? };
/// assert_eq!(settings.project, "poems");
/// # Ok::<(), dlm_wandb::WandbError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Settings {
    /// Project (`WANDB_PROJECT`, else `uncategorized`).
    pub project: String,
    /// Team or user (`WANDB_ENTITY`); none: the key's default.
    pub entity: Option<String>,
    /// The run's id (`WANDB_RUN_ID`); none: a fresh one of 8 letters and digits.
    pub id: Option<String>,
    /// Display name (`WANDB_NAME`); none: the server invents one.
    pub name: Option<String>,
    /// Group of runs (`WANDB_RUN_GROUP`).
    pub group: Option<String>,
    /// Kind of job (`WANDB_JOB_TYPE`).
    pub job_type: Option<String>,
    /// Notes (`WANDB_NOTES`).
    pub notes: Option<String>,
    /// Tags (`WANDB_TAGS`, comma-separated), each of 1 to 64 characters.
    pub tags: Vec<String>,
    /// What to do when the id is taken, or not (`WANDB_RESUME`).
    pub resume: Resume,
    /// Whether there is to be a run at all (`WANDB_MODE`); for the caller, who asks before [`Run::start`](crate::Run::start).
    pub mode: Mode,
    /// The server (`WANDB_BASE_URL`, else `https://api.wandb.ai`).
    pub base_url: String,
    /// The key (`WANDB_API_KEY`); none: it is looked up in the netrc file.
    pub api_key: Option<ApiKey>,
    /// The netrc file (`NETRC`, else `~/.netrc`, else `~/_netrc`).
    pub netrc: Option<PathBuf>,
    /// How long a server that does not answer is tried at the start before it is an error.
    pub start_timeout: Duration,
    /// How long [`finish`](crate::Run::finish) waits for the rest to be delivered.
    pub finish_timeout: Duration,
    /// How often the server is spoken to.
    pub pace: Pace,
}

/// What to do about a run of the same id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// Start a new run; an id that is taken is an error.
    #[default]
    Never,
    /// Continue the run if it exists, else start it.
    Allow,
    /// Continue the run; it is an error if there is none.
    Must,
}

/// Whether a run is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It is sent to the server.
    #[default]
    Online,
    /// Nothing is sent.
    Disabled,
}

/// Times between requests, and how long each may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// At most one delivery of rows in so long; what arrives meanwhile is joined.
    pub flush_interval: Duration,
    /// With nothing to deliver, a sign of life after so long; without one the server calls the run crashed.
    pub heartbeat_interval: Duration,
    /// How long a GraphQL request may take (`WANDB_HTTP_TIMEOUT`, seconds).
    pub graphql_timeout: Duration,
    /// How long a delivery of rows, or an upload, may take.
    pub stream_timeout: Duration,
    /// The first wait before a retry when the server names none; it doubles each time.
    pub first_retry: Duration,
    /// The longest such wait.
    pub longest_retry: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            flush_interval: Duration::from_secs(15),
            heartbeat_interval: Duration::from_secs(30),
            graphql_timeout: Duration::from_secs(30),
            stream_timeout: Duration::from_secs(180),
            first_retry: Duration::from_secs(2),
            longest_retry: Duration::from_secs(60),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            project: "uncategorized".to_owned(),
            entity: None,
            id: None,
            name: None,
            group: None,
            job_type: None,
            notes: None,
            tags: Vec::new(),
            resume: Resume::default(),
            mode: Mode::default(),
            base_url: "https://api.wandb.ai".to_owned(),
            api_key: None,
            netrc: None,
            start_timeout: Duration::from_secs(60),
            finish_timeout: Duration::from_secs(120),
            pace: Pace::default(),
        }
    }
}

impl Settings {
    /// The settings that the `WANDB_` variables name.
    ///
    /// # Errors
    /// [`WandbError::Setting`] or [`WandbError::MalformedKey`] when a variable cannot be used.
    pub fn from_environment() -> Result<Self> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// The same from any source of variables; one that is empty counts as unset.
    ///
    /// # Errors
    /// As [`from_environment`](Self::from_environment).
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let get = |name: &str| variable(name).filter(|text| !text.is_empty());
        let mut settings = Self {
            entity: get("WANDB_ENTITY"),
            id: get("WANDB_RUN_ID"),
            name: get("WANDB_NAME"),
            group: get("WANDB_RUN_GROUP"),
            job_type: get("WANDB_JOB_TYPE"),
            notes: get("WANDB_NOTES"),
            ..Self::default()
        };
        if let Some(project) = get("WANDB_PROJECT") {
            settings.project = project;
        }
        if let Some(url) = get("WANDB_BASE_URL") {
            settings.base_url = url;
        }
        if let Some(tags) = get("WANDB_TAGS") {
            settings.tags = tags.split(',').map(|tag| tag.trim().to_owned()).collect();
        }
        if let Some(resume) = get("WANDB_RESUME") {
            settings.resume = Resume::from_name("WANDB_RESUME", &resume)?;
        }
        if let Some(mode) = get("WANDB_MODE") {
            settings.mode = Mode::from_name("WANDB_MODE", &mode)?;
        }
        if let Some(text) = get("WANDB_HTTP_TIMEOUT") {
            let seconds = text.parse().ok().filter(|seconds: &f64| *seconds > 0.0);
            settings.pace.graphql_timeout = seconds
                .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
                .ok_or_else(|| WandbError::Setting {
                    name: "WANDB_HTTP_TIMEOUT",
                    value: text,
                    expected: "seconds, more than 0".to_owned(),
                })?;
        }
        settings.api_key = get("WANDB_API_KEY").map(|key| ApiKey::new(&key, "`WANDB_API_KEY`")).transpose()?;
        settings.netrc = get("NETRC").map(PathBuf::from).or_else(|| {
            let home = PathBuf::from(get("HOME")?);
            let (usual, other) = (home.join(".netrc"), home.join("_netrc"));
            Some(if usual.exists() || !other.exists() { usual } else { other })
        });
        Ok(settings)
    }

    /// The API key: the given one, else the netrc file's for this server.
    ///
    /// # Errors
    /// [`WandbError::NoKey`] if there is none; [`WandbError::Netrc`] and [`WandbError::MalformedKey`] if it cannot be used.
    pub fn find_key(&self) -> Result<ApiKey> {
        if let Some(key) = &self.api_key {
            return Ok(key.clone());
        }
        let host = host(&self.url()?);
        let found = self.netrc.as_deref().map(|path| credentials::from_netrc(path, &host)).transpose()?;
        found.flatten().ok_or(WandbError::NoKey { host })
    }

    /// The server's address, checked.
    pub(crate) fn url(&self) -> Result<Url> {
        let url = Url::parse(self.base_url.trim_end_matches('/')).ok().filter(|url| {
            let plain = url.query().is_none() && url.fragment().is_none();
            matches!(url.scheme(), "http" | "https") && url.has_host() && plain && has_no_user(url)
        });
        url.ok_or_else(|| WandbError::Setting {
            name: "WANDB_BASE_URL",
            // What stands before an @ may be a password.
            value: self.base_url.rsplit_once('@').map_or(self.base_url.clone(), |(_, host)| format!("***@{host}")),
            expected: "an address such as `https://api.wandb.ai`, without user, query and fragment".to_owned(),
        })
    }

    /// Refuses names that the server would refuse.
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |name, value: &str, expected: &str| {
            Err(WandbError::Setting { name, value: value.to_owned(), expected: expected.to_owned() })
        };
        let project = &self.project;
        if project.is_empty() || project.chars().count() > 128 || project.contains(['/', '\\', '#', '?', '%', ':']) {
            return refuse("WANDB_PROJECT", project, "1 to 128 characters, none of `/ \\ # ? % :`");
        }
        if let Some(id) = &self.id
            && (id.is_empty()
                || id.chars().count() > 128
                || id.trim() != id
                || id.contains([':', ';', ',', '#', '?', '/', '\'']))
        {
            let expected = "1 to 128 characters, none of `: ; , # ? / '`, no white space around them";
            return refuse("WANDB_RUN_ID", id, expected);
        }
        if let Some(tag) = self.tags.iter().find(|tag| !(1..=64).contains(&tag.chars().count())) {
            return refuse("WANDB_TAGS", tag, "tags of 1 to 64 characters");
        }
        if self.id.is_none() && self.resume == Resume::Must {
            return refuse("WANDB_RUN_ID", "", "the id of the run to resume");
        }
        Ok(())
    }
}

fn has_no_user(url: &Url) -> bool {
    url.username().is_empty() && url.password().is_none()
}

/// A server as a netrc file names it: with the port that its address has.
pub(crate) fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or(host.to_owned(), |port| format!("{host}:{port}"))
}

impl Resume {
    /// Reads `allow`, `must` or `never`; `setting` names its origin in the error.
    ///
    /// # Errors
    /// [`WandbError::Setting`] for anything else.
    pub fn from_name(setting: &'static str, name: &str) -> Result<Self> {
        match name {
            "allow" => Ok(Self::Allow),
            "must" => Ok(Self::Must),
            "never" => Ok(Self::Never),
            _ => Err(WandbError::Setting {
                name: setting,
                value: name.to_owned(),
                expected: "`allow`, `must` or `never`".to_owned(),
            }),
        }
    }
}

impl Mode {
    /// Reads `online` (or `run`) or `disabled`; `setting` names its origin in the error.
    ///
    /// # Errors
    /// [`WandbError::Setting`] for anything else.
    pub fn from_name(setting: &'static str, name: &str) -> Result<Self> {
        match name {
            "online" | "run" => Ok(Self::Online),
            "disabled" => Ok(Self::Disabled),
            _ => Err(WandbError::Setting {
                name: setting,
                value: name.to_owned(),
                expected: "`online` or `disabled`".to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef01234567";

    fn variables(pairs: &[(&str, &str)]) -> Result<Settings> {
        Settings::from_variables(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, text)| (*text).to_owned()))
    }

    #[test]
    fn variables_fill_the_settings_and_empty_ones_do_not() {
        let settings = variables(&[
            ("WANDB_PROJECT", "p"),
            ("WANDB_ENTITY", ""),
            ("WANDB_RUN_GROUP", "g"),
            ("WANDB_GROUP", "ignored"),
            ("WANDB_TAGS", "a, b"),
            ("WANDB_RESUME", "allow"),
            ("WANDB_HTTP_TIMEOUT", "2.5"),
            ("WANDB_API_KEY", KEY),
        ])
        .unwrap();
        assert_eq!((settings.project.as_str(), settings.entity), ("p", None));
        assert_eq!((settings.group.as_deref(), settings.tags), (Some("g"), vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!((settings.resume, settings.pace.graphql_timeout), (Resume::Allow, Duration::from_millis(2500)));
    }

    #[test]
    fn the_key_is_not_in_the_settings_debug_text() {
        let settings = variables(&[("WANDB_API_KEY", KEY)]).unwrap();
        assert!(!format!("{settings:?}").contains(KEY));
    }

    #[test]
    fn a_value_that_cannot_be_used_names_what_can() {
        let error = variables(&[("WANDB_MODE", "offline")]).unwrap_err();
        assert_eq!(error.to_string(), "`WANDB_MODE` is `offline`; expected `online` or `disabled`");
        assert!(variables(&[("WANDB_RESUME", "auto")]).is_err());
        assert!(variables(&[("WANDB_HTTP_TIMEOUT", "soon")]).is_err());
        assert!(variables(&[("WANDB_API_KEY", "short")]).is_err());
    }

    #[test]
    fn names_that_the_server_refuses_are_refused_before() {
        let bad: [fn(&mut Settings); 7] = [
            |s| s.project = "a/b".into(),
            |s| s.project = "x".repeat(129),
            |s| s.id = Some("a:b".into()),
            |s| s.id = Some(" a".into()),
            |s| s.tags = vec![String::new()],
            |s| s.tags = vec!["x".repeat(65)],
            |s| s.resume = Resume::Must,
        ];
        for change in bad {
            let mut settings = Settings::default();
            change(&mut settings);
            assert!(settings.check().is_err(), "{settings:?}");
        }
        assert!(Settings::default().check().is_ok());
    }

    #[test]
    fn an_address_with_a_password_is_refused_without_repeating_it() {
        let settings = Settings { base_url: "https://me:secret@example.com".into(), ..Settings::default() };
        let error = settings.url().unwrap_err();
        assert!(!format!("{error:?}").contains("secret"), "{error}");
        assert!(Settings { base_url: "example.com".into(), ..Settings::default() }.url().is_err());
    }

    #[test]
    fn the_netrc_file_is_asked_last_and_a_missing_key_names_the_machine() {
        let folder = tempfile::tempdir().unwrap();
        let netrc = folder.path().join("netrc");
        std::fs::write(&netrc, format!("machine 127.0.0.1:80 login user password {KEY}x")).unwrap();
        let mut settings =
            Settings { base_url: "http://127.0.0.1:81/".into(), netrc: Some(netrc), ..Settings::default() };
        let error = settings.find_key().unwrap_err();
        assert_eq!(error.to_string(), "no API key for `127.0.0.1:81`");
        assert!(error.help().unwrap().contains("machine 127.0.0.1:81 login user password KEY"));
        settings.api_key = Some(ApiKey::new(KEY, "a test").unwrap());
        assert_eq!(settings.find_key().unwrap().secret(), KEY);
    }
}
