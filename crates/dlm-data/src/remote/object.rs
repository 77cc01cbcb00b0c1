//! `s3://`, `gs://`, `az://`: objects, patterns and folders of a bucket.

use super::{
    Remote, RemoteFile,
    cache::Entry,
    request::{Failure, retrying_at},
};
use crate::{
    error::{DataError, Result},
    source::{FileFormat, MATCHING, Source, compile, is_meant, is_pattern, of_split},
};
use futures::{StreamExt, TryStreamExt};
use object_store::{
    ClientOptions, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig, aws::AmazonS3Builder,
    azure::MicrosoftAzureBuilder, gcp::GoogleCloudStorageBuilder, path::Path,
};
use std::{error::Error, path::PathBuf, sync::Arc};
use url::Url;

/// Brings the objects here that an address names: one, those that match a pattern, or the data files of a folder.
pub(crate) async fn fetch(url: &Url, source: &Source, remote: &Remote) -> Result<Vec<RemoteFile>> {
    let (pattern, format) = (source.path.as_str(), source.format);
    let unusable = |error: object_store::Error| Failure::lasting(reason(&error)).error(pattern);
    let store = open(url, remote).map_err(unusable)?;
    // The address after the bucket, as it was written: in a pattern, `?` and `[` are no parts of an address.
    let (bucket, key) = split(pattern);
    let mut found = if is_pattern(key) {
        let wanted = compile(key)?;
        let before = &key[..key.find(['*', '?', '[']).unwrap_or(key.len())];
        let prefix = before.rfind('/').map_or("", |end| &before[..end]);
        let mut found = list(&*store, prefix, pattern, remote).await?;
        found.retain(|object| wanted.matches_with(object.location.as_ref(), MATCHING));
        found
    } else {
        object_or_folder(&*store, key, format, pattern, remote).await?
    };
    if let Some(split) = source.split.as_ref().filter(|_| !found.is_empty()) {
        found = of_split(found, key, split, |object| PathBuf::from(object.location.to_string()))?;
    }
    let cache = remote.cache_folder()?;
    let mut files = Vec::with_capacity(found.len());
    for object in found {
        let address = format!("{bucket}/{}", object.location);
        let entry = Entry::new(&cache, &address, object.location.filename().unwrap_or("object"));
        let path = retrying_at(&address, remote.retry, async || download(&*store, &object, &entry).await).await?;
        files.push(RemoteFile { path, address });
    }
    Ok(files)
}

/// `s3://bucket` and the key.
fn split(address: &str) -> (&str, &str) {
    let start = address.find("://").map_or(0, |at| at + 3);
    let end = address[start..].find('/').map_or(address.len(), |at| start + at);
    (&address[..end], address[end..].trim_start_matches('/'))
}

fn open(url: &Url, remote: &Remote) -> object_store::Result<Arc<dyn ObjectStore>> {
    // Attempts are repeated here, with what was received half-way thrown away.
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let variables = remote.variables();
    let of = |prefix: &'static str| variables.iter().filter(move |(name, _)| name.starts_with(prefix));
    let address = format!("{}://{}/", url.scheme(), url.authority());
    let client = ClientOptions::new();
    Ok(match url.scheme() {
        "s3" | "s3a" => {
            let mut builder = AmazonS3Builder::new().with_client_options(client);
            for (name, value) in of("AWS_") {
                if let Ok(key) = name.to_ascii_lowercase().parse() {
                    builder = builder.with_config(key, value);
                }
            }
            Arc::new(builder.with_url(address).with_retry(retry).build()?)
        }
        "gs" => {
            let mut builder = GoogleCloudStorageBuilder::new().with_client_options(client);
            for (name, value) in of("GOOGLE_") {
                if let Ok(key) = name.to_ascii_lowercase().parse() {
                    builder = builder.with_config(key, value);
                }
            }
            Arc::new(builder.with_url(address).with_retry(retry).build()?)
        }
        _ => {
            let mut builder = MicrosoftAzureBuilder::new().with_client_options(client);
            for (name, value) in of("AZURE_") {
                if let Ok(key) = name.to_ascii_lowercase().parse() {
                    builder = builder.with_config(key, value);
                }
            }
            Arc::new(builder.with_url(address).with_retry(retry).build()?)
        }
    })
}

async fn list(store: &dyn ObjectStore, prefix: &str, shown: &str, remote: &Remote) -> Result<Vec<ObjectMeta>> {
    let prefix = Path::parse(prefix).map_err(|error| DataError::Invalid(format!("the address `{shown}`: {error}")))?;
    let mut found: Vec<ObjectMeta> = retrying_at(shown, remote.retry, async || {
        store.list(Some(&prefix)).try_collect().await.map_err(|error| failure(&error))
    })
    .await?;
    found.sort_by(|a, b| a.location.cmp(&b.location));
    Ok(found)
}

async fn object_or_folder(
    store: &dyn ObjectStore,
    key: &str,
    format: Option<FileFormat>,
    shown: &str,
    remote: &Remote,
) -> Result<Vec<ObjectMeta>> {
    let path = Path::parse(key).map_err(|error| DataError::Invalid(format!("the address `{shown}`: {error}")))?;
    let mut missing = None;
    if !key.is_empty() && !key.ends_with('/') {
        let head = retrying_at(shown, remote.retry, async || store.head(&path).await.map_err(|error| failure(&error)));
        match head.await {
            Ok(object) => return Ok(vec![object]),
            Err(error @ DataError::Remote { status: Some(404), .. }) => missing = Some(error),
            Err(error) => return Err(error),
        }
    }
    let mut found = list(store, key.trim_end_matches('/'), shown, remote).await?;
    found.retain(|object| {
        let within = object.location.as_ref().strip_prefix(path.as_ref()).unwrap_or(object.location.as_ref());
        is_meant(std::path::Path::new(within.trim_start_matches('/')), format)
    });
    match missing {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

async fn download(
    store: &dyn ObjectStore,
    object: &ObjectMeta,
    entry: &Entry,
) -> std::result::Result<PathBuf, Failure> {
    let tag = |object: &ObjectMeta| {
        let tag = object.e_tag.clone().unwrap_or_else(|| object.last_modified.to_rfc3339());
        format!("{tag} {}", object.size)
    };
    if let Some((kept, path)) = entry.find()
        && kept == tag(object)
    {
        return Ok(path);
    }
    let answer = store.get(&object.location).await.map_err(|error| failure(&error))?;
    let current = answer.meta.clone();
    let mut incoming = entry.begin()?;
    let mut content = answer.into_stream();
    while let Some(bytes) = content.next().await {
        incoming.write(&bytes.map_err(|error| failure(&error))?)?;
    }
    if incoming.size() != current.size {
        return Err(Failure::broken(&std::io::Error::other("it broke off half-way")));
    }
    incoming.keep(&tag(&current))
}

/// What a store's error means, without the text of requests and answers.
fn failure(error: &object_store::Error) -> Failure {
    match error {
        object_store::Error::NotFound { .. } => Failure::status(404, None),
        object_store::Error::PermissionDenied { .. } => Failure::status(403, None),
        object_store::Error::Unauthenticated { .. } => Failure::status(401, None),
        other => match status_in(other) {
            Some(status) => Failure::status(status, None),
            None => Failure::broken(other),
        },
    }
}

/// The status that the store names in its text: it has no other way to.
fn status_in(error: &(dyn Error + 'static)) -> Option<u16> {
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        let found = text.find("status code: ").map(|at| &text[at + 13..]);
        if let Some(status) = found.and_then(|rest| rest.get(..3)?.parse().ok()) {
            return Some(status);
        }
        next = error.source();
    }
    None
}

fn reason(error: &object_store::Error) -> String {
    let text = error.to_string();
    text.split(" error: ").last().unwrap_or(&text).to_owned()
}
