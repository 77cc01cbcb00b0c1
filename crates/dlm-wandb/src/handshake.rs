//! The beginning of a run: who we are, whether the run exists, creating it.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::json;

use crate::{
    error::{Result, WandbError},
    http::{Api, Failure},
    settings::{Resume, Settings},
    value::{Object, Value},
};

const VIEWER: &str = "query Viewer { viewer { id entity username } }";

const RESUME_STATUS: &str = "query RunResumeStatus($project: String, $entity: String, $name: String!) {
  model(name: $project, entityName: $entity) {
    bucket(name: $name, missingOk: true) {
      id historyLineCount historyTail summaryMetrics config wandbConfig(keys: [\"t\"])
    }
  }
}";

const UPSERT: &str = "mutation UpsertBucket($id: String, $name: String, $project: String, $entity: String, \
$groupName: String, $displayName: String, $notes: String, $jobType: String, $config: JSONString, $tags: [String!]) {
  upsertBucket(input: {id: $id, name: $name, modelName: $project, entityName: $entity, groupName: $groupName, \
displayName: $displayName, notes: $notes, jobType: $jobType, config: $config, tags: $tags}) {
    bucket { id name displayName project { name entity { name } } historyLineCount }
    inserted
  }
}";

const FEATURES: &str = "query ServerFeaturesQuery { serverInfo { features { name isEnabled } } }";

/// The run as the server knows it now.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) entity: String,
    pub(crate) project: String,
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) resumed: bool,
    /// Lines that its history has.
    pub(crate) history_lines: u64,
    /// The first step that its history lacks.
    pub(crate) next_step: u64,
    /// Seconds that it ran before.
    pub(crate) runtime_s: f64,
    /// Its summary so far.
    pub(crate) summary: Object,
    /// Its whole config, each value wrapped as the protocol wants it.
    pub(crate) config: Object,
    /// The server takes packed bodies.
    pub(crate) gzip: bool,
}

/// Starts or resumes the run.
pub(crate) fn start(api: &Api, settings: &Settings, config: Object) -> Result<Started> {
    let patience = Patience { api, settings, began: Instant::now() };
    let viewer: ViewerData = patience.ask("Viewer", VIEWER, &json!({}))?;
    let viewer = viewer.viewer.ok_or_else(|| WandbError::KeyRefused { host: api.host() })?;
    let entity = settings.entity.clone().or(viewer.entity);
    let id = settings.id.clone().unwrap_or_else(fresh_id);

    let found = match settings.id {
        Some(_) => {
            let variables = json!({"project": settings.project, "entity": entity, "name": id});
            let data: ResumeData = patience.ask("RunResumeStatus", RESUME_STATUS, &variables)?;
            data.model.and_then(|model| model.bucket)
        }
        None => None, // a fresh id is free
    };
    let before = found.map(Before::read).transpose()?.unwrap_or_default();
    let project = settings.project.clone();
    match (settings.resume, &before.resumable) {
        (Resume::Never, Some(_)) => return Err(WandbError::RunExists { id, project }),
        (Resume::Must, None) => return Err(WandbError::NoSuchRun { id, project }),
        _ => {}
    }

    let config = before.joined_config(config);
    let tags = (!settings.tags.is_empty()).then_some(&settings.tags);
    let variables = json!({
        "id": before.resumable, "name": id, "project": project, "entity": entity,
        "groupName": settings.group, "displayName": settings.name, "notes": settings.notes,
        "jobType": settings.job_type, "config": config.to_string(), "tags": tags,
    });
    let data: UpsertData = patience.ask("UpsertBucket", UPSERT, &variables)?;
    let bucket = data.upsert_bucket.bucket;
    Ok(Started {
        entity: bucket.project.entity.name,
        project: bucket.project.name,
        name: bucket.display_name.unwrap_or_else(|| bucket.name.clone()),
        id: bucket.name,
        resumed: before.resumable.is_some(),
        history_lines: bucket.history_line_count.unwrap_or(0).max(before.history_lines),
        next_step: before.next_step,
        runtime_s: before.runtime_s,
        summary: before.summary,
        config,
        gzip: patience.announces_gzip()?,
    })
}

/// The first requests, repeated until the start's time is up.
struct Patience<'a> {
    api: &'a Api,
    settings: &'a Settings,
    began: Instant,
}

impl Patience<'_> {
    fn ask<T: for<'de> Deserialize<'de>>(
        &self,
        operation: &'static str,
        query: &str,
        variables: &serde_json::Value,
    ) -> Result<T> {
        let mut attempt = 0;
        loop {
            let left = self.settings.start_timeout.saturating_sub(self.began.elapsed());
            let timeout = self.settings.pace.graphql_timeout.min(left).max(Duration::from_millis(1));
            let failure = match self.api.graphql(operation, query, variables, timeout) {
                Ok(data) => return Ok(data),
                Err(failure) => failure,
            };
            let left = self.settings.start_timeout.saturating_sub(self.began.elapsed());
            match failure.wait(&self.settings.pace, attempt) {
                Some(wait) if wait < left => thread::sleep(wait),
                _ => return Err(self.error(operation, failure)),
            }
            attempt += 1;
        }
    }

    fn error(&self, operation: &'static str, failure: Failure) -> WandbError {
        let host = self.api.host();
        match failure {
            Failure { status: Some(401), .. } => WandbError::KeyRefused { host },
            Failure { retry: crate::http::Retry::Never, reason, .. } => WandbError::Server { operation, reason },
            Failure { reason, .. } => {
                WandbError::Unreachable { host, waited_s: self.began.elapsed().as_secs_f64(), reason }
            }
        }
    }

    fn announces_gzip(&self) -> Result<bool> {
        match self.ask::<FeaturesData>("ServerFeaturesQuery", FEATURES, &json!({})) {
            Ok(data) => {
                let features = data.server_info.and_then(|info| info.features).unwrap_or_default();
                Ok(features.iter().any(|feature| feature.name == "FILESTREAM_GZIP" && feature.is_enabled))
            }
            // Old servers lack the question.
            Err(WandbError::Server { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// What an earlier session left.
#[derive(Debug, Default)]
struct Before {
    /// The storage id, if the run counts as started.
    resumable: Option<String>,
    history_lines: u64,
    next_step: u64,
    runtime_s: f64,
    summary: Object,
    config: Object,
}

impl Before {
    fn read(bucket: Bucket) -> Result<Self> {
        let object = |text: Option<String>| read_object(&text.unwrap_or_else(|| "{}".to_owned()));
        let telemetry = object(bucket.wandb_config)?;
        let history_lines = bucket.history_line_count.unwrap_or(0);
        let tail: Vec<String> =
            serde_json::from_str(bucket.history_tail.as_deref().unwrap_or("[]")).map_err(|error| unreadable(&error))?;
        let last_row = tail.last().map(|row| read_object(row)).transpose()?.unwrap_or_default();
        let number = |object: &Object, name: &str| object.get(name).and_then(Value::as_f64).unwrap_or(0.0);
        let last_step = last_row.get("_step").and_then(Value::as_f64);
        let next_step = match last_step {
            Some(step) if history_lines > 0 && step >= 0.0 => step as u64 + 1,
            None if history_lines > 0 => return Err(unreadable("the last history row has no `_step`")),
            _ => 0,
        };
        let summary = object(bucket.summary_metrics)?;
        let inner_s = match summary.get("_wandb") {
            Some(Value::Object(inner)) => number(inner, "runtime"),
            _ => 0.0,
        };
        let runtime_s = number(&last_row, "_runtime").max(number(&summary, "_runtime")).max(inner_s);
        Ok(Self {
            resumable: telemetry.get("t").is_some().then_some(bucket.id),
            history_lines,
            next_step,
            runtime_s,
            summary,
            config: object(bucket.config)?,
        })
    }

    /// The old config with the new one over it, and the telemetry without which a run cannot be resumed.
    fn joined_config(&self, new: Object) -> Object {
        let version = concat!("dlm ", env!("CARGO_PKG_VERSION"));
        let platform = format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH);
        let telemetry = Object::from([("12", version.to_owned()), ("13", platform)]);
        let internal = Object::new().with("t", telemetry).with("m", Value::List(Vec::new()));
        let mut config = self.config.clone();
        for (name, value) in new.into_iter().chain([("_wandb".to_owned(), Value::Object(internal))]) {
            config.insert(name, Object::new().with("value", value));
        }
        config
    }
}

fn read_object(text: &str) -> Result<Object> {
    let value = Value::from_json(text).map_err(|error| unreadable(&error))?;
    match value {
        Value::Null => Ok(Object::new()),
        value => value.into_object().ok_or_else(|| unreadable("a value is not an object")),
    }
}

fn unreadable(reason: &(impl ToString + ?Sized)) -> WandbError {
    WandbError::Server {
        operation: "RunResumeStatus",
        reason: format!("the answer cannot be read: {}", reason.to_string()),
    }
}

/// Eight letters and digits.
fn fresh_id() -> String {
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    (0..8).map(|_| char::from(LETTERS[rand::random_range(0..LETTERS.len())])).collect()
}

#[derive(Deserialize)]
struct ViewerData {
    viewer: Option<Viewer>,
}

#[derive(Deserialize)]
struct Viewer {
    entity: Option<String>,
}

#[derive(Deserialize)]
struct ResumeData {
    model: Option<Model>,
}

#[derive(Deserialize)]
struct Model {
    bucket: Option<Bucket>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bucket {
    id: String,
    history_line_count: Option<u64>,
    history_tail: Option<String>,
    summary_metrics: Option<String>,
    config: Option<String>,
    wandb_config: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UpsertData {
    upsert_bucket: Upserted,
}

#[derive(Deserialize)]
struct Upserted {
    bucket: UpsertedBucket,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UpsertedBucket {
    name: String,
    display_name: Option<String>,
    project: Project,
    history_line_count: Option<u64>,
}

#[derive(Deserialize)]
struct Project {
    name: String,
    entity: Entity,
}

#[derive(Deserialize)]
struct Entity {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FeaturesData {
    server_info: Option<ServerInfo>,
}

#[derive(Deserialize)]
struct ServerInfo {
    features: Option<Vec<Feature>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Feature {
    name: String,
    is_enabled: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(wandb_config: &str) -> Bucket {
        Bucket {
            id: "storage".into(),
            history_line_count: Some(2),
            history_tail: Some(r#"["{\"_step\":7,\"_runtime\":1.5,\"loss\":NaN}"]"#.into()),
            summary_metrics: Some(r#"{"loss":NaN,"_wandb":{"runtime":3}}"#.into()),
            config: Some(r#"{"old":{"value":1},"lr":{"value":1}}"#.into()),
            wandb_config: Some(wandb_config.into()),
        }
    }

    #[test]
    fn a_resumed_run_goes_on_after_its_last_step_line_and_second() {
        let before = Before::read(bucket(r#"{"t":{"12":"x"}}"#)).unwrap();
        assert_eq!((before.next_step, before.history_lines, before.runtime_s), (8, 2, 3.0));
        assert_eq!(before.resumable.as_deref(), Some("storage"));
        assert_eq!(before.summary.to_string(), r#"{"_wandb":{"runtime":3},"loss":NaN}"#);
        let config = before.joined_config(Object::from([("lr", 2)]));
        assert!(config.to_string().starts_with(r#"{"_wandb":{"value":{"m":[],"t":{"12":"dlm "#), "{config}");
        assert!(config.to_string().ends_with(r#""lr":{"value":2},"old":{"value":1}}"#), "{config}");
    }

    #[test]
    fn a_run_without_telemetry_counts_as_never_started() {
        assert_eq!(Before::read(bucket("{}")).unwrap().resumable, None);
    }

    #[test]
    fn fresh_ids_have_eight_letters_or_digits_and_differ() {
        let (one, two) = (fresh_id(), fresh_id());
        assert!(one.len() == 8 && one.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()));
        assert_ne!(one, two);
    }
}
