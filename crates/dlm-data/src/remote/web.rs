//! `https://`: one file at an address.

use super::{
    Remote, RemoteFile,
    address::{path_of, redacted},
    cache::Entry,
    request::{Failure, client, retrying_at, send},
};
use crate::{
    error::Result,
    source::{Source, of_split},
};
use reqwest::header::{CONTENT_LENGTH, ETAG, HeaderMap, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED};
use std::path::PathBuf;
use url::Url;

/// Brings one file here, unless the server says that the kept one is still the same.
pub(crate) async fn fetch(url: &Url, source: &Source, remote: &Remote) -> Result<Vec<RemoteFile>> {
    let address = redacted(url.as_str());
    let name = path_of(url.as_str());
    let name = name.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("file");
    if let Some(split) = &source.split {
        of_split(vec![name.to_owned()], name, split, |name| PathBuf::from(name))?;
    }
    let entry = Entry::new(&remote.cache_folder()?, url.as_str(), name);
    let path = retrying_at(&address, remote.retry, async || download(url, &entry).await).await?;
    Ok(vec![RemoteFile { path, address }])
}

async fn download(url: &Url, entry: &Entry) -> std::result::Result<PathBuf, Failure> {
    let mut request = client()?.get(url.clone());
    let kept = entry.find();
    if let Some((tag, _)) = &kept {
        // A tag is what it was called, so that it can be asked about.
        request = match tag.split_once(": ") {
            Some(("etag", value)) => request.header(IF_NONE_MATCH, value),
            Some(("modified", value)) => request.header(IF_MODIFIED_SINCE, value),
            _ => request,
        };
    }
    let mut answer = send(request).await?;
    if let Some((_, path)) = kept.filter(|_| answer.status().as_u16() == 304) {
        return Ok(path);
    }
    let tag = tag_of(answer.headers());
    let expected = answer.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let mut incoming = entry.begin()?;
    while let Some(bytes) = answer.chunk().await.map_err(|error| Failure::broken(&error.without_url()))? {
        incoming.write(&bytes)?;
    }
    if expected.is_some_and(|expected| expected != incoming.size()) {
        return Err(Failure::broken(&std::io::Error::other("it broke off half-way")));
    }
    incoming.keep(&tag)
}

fn tag_of(headers: &HeaderMap) -> String {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match (text(ETAG), text(LAST_MODIFIED)) {
        (Some(etag), _) => format!("etag: {etag}"),
        (None, Some(modified)) => format!("modified: {modified}"),
        (None, None) => "none".to_owned(),
    }
}
