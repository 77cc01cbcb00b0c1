//! `hf://`: data sets and tokenizers of the Hugging Face hub, in the cache that the hub's other clients use.

use super::{
    Remote, RemoteFile,
    request::{Failure, client, retrying, retrying_at, send},
};
use crate::{
    error::{DataError, Result},
    source::{FileFormat, MATCHING, Source, compile, is_meant, is_pattern, of_split},
};
use hf_hub::{
    Cache, Repo, RepoType,
    api::tokio::{Api, ApiBuilder, ApiError},
};
use serde::Deserialize;
use std::path::{Component, Path, PathBuf};

/// Where the hub is unless `HF_ENDPOINT` says otherwise.
const ENDPOINT: &str = "https://huggingface.co";
/// What a tokenizer consists of, beside `tokenizer.json`.
const TOKENIZER_PARTS: [&str; 6] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
];

/// A place in a repository of the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    is_dataset: bool,
    /// `OWNER/NAME`.
    repo: String,
    revision: String,
    path: String,
}

impl Place {
    fn parse(address: &str) -> Result<Self> {
        let wrong = || {
            DataError::Invalid(format!(
                "the address `{address}` is none of the hub: write `hf://datasets/OWNER/NAME[@REVISION]/PATH` or `hf://OWNER/NAME`"
            ))
        };
        let rest = address.strip_prefix("hf://").ok_or_else(wrong)?;
        let (is_dataset, rest) = rest.strip_prefix("datasets/").map_or((false, rest), |rest| (true, rest));
        let rest = rest.strip_prefix("models/").unwrap_or(rest);
        let mut parts = rest.splitn(3, '/');
        let owner = parts.next().filter(|owner| !owner.is_empty()).ok_or_else(wrong)?;
        let name = parts.next().filter(|name| !name.is_empty()).ok_or_else(wrong)?;
        let mut path = parts.next().unwrap_or_default().to_owned();
        let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
        let mut revision = revision.replace("%2F", "/");
        if revision == "refs" {
            // `refs/convert/parquet` and `refs/pr/1` are revisions of three words.
            let mut words = path.splitn(3, '/').map(str::to_owned).collect::<Vec<_>>();
            if words.len() < 2 {
                return Err(wrong());
            }
            revision = format!("refs/{}/{}", words[0], words[1]);
            path = words.drain(2..).next().unwrap_or_default();
        }
        let repo = format!("{owner}/{name}");
        if revision.is_empty() || repo.split('/').any(|word| word.is_empty() || word.starts_with('.')) {
            return Err(wrong());
        }
        Ok(Self { is_dataset, repo, revision, path: path.trim_end_matches('/').to_owned() })
    }

    fn repo(&self) -> Repo {
        let kind = if self.is_dataset { RepoType::Dataset } else { RepoType::Model };
        Repo::with_revision(self.repo.clone(), kind, self.revision.clone())
    }

    /// The address of a file of the same repository.
    fn address(&self, path: &str) -> String {
        let kind = if self.is_dataset { "datasets/" } else { "" };
        let revision = if self.revision == "main" { String::new() } else { format!("@{}", self.revision) };
        format!("hf://{kind}{}{revision}/{path}", self.repo)
    }
}

/// The hub as the environment describes it.
struct Hub {
    endpoint: String,
    token: Option<String>,
    cache: Cache,
    api: Api,
}

impl Hub {
    fn new(remote: &Remote, shown: &str) -> Result<Self> {
        let variables = remote.variables();
        let home = variables.get("HF_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(PathBuf::from(variables.get("HOME")?).join(".cache/huggingface")));
        let folder = variables.get("HF_HUB_CACHE").map(PathBuf::from).or_else(|| home.map(|home| home.join("hub")));
        let folder = folder.ok_or_else(|| DataError::Invalid("neither `HF_HOME` nor `HOME` is set".to_owned()))?;
        let folder = std::path::absolute(&folder).map_err(|source| DataError::Read { path: folder, source })?;
        let cache = Cache::new(folder.clone());
        let token = variables.get("HF_TOKEN").cloned().or_else(|| cache.token());
        let endpoint =
            variables.get("HF_ENDPOINT").map_or(ENDPOINT, |endpoint| endpoint.trim_end_matches('/')).to_owned();
        let api = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(endpoint.clone())
            .with_token(token.clone())
            .with_cache_dir(folder)
            .with_progress(false)
            .build()
            .map_err(|error| failure(&error).error(shown))?;
        Ok(Self { endpoint, token, cache, api })
    }

    /// Brings one file here; one that is here under the same commit is not brought again.
    async fn file(&self, place: &Place, path: &str) -> std::result::Result<(PathBuf, String), Failure> {
        let is_plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        if !is_plain || path.is_empty() {
            return Err(Failure::lasting(format!("`{path}` is no path in a repository")));
        }
        let repo = self.api.repo(place.repo());
        let metadata = self.api.metadata(&repo.url(path)).await.map_err(|error| failure(&error))?;
        let commit = metadata.commit_hash().to_owned();
        let kept = self.cache.repo(place.repo()).pointer_path(&commit).join(path);
        let is_whole = std::fs::metadata(&kept).is_ok_and(|kept| kept.len() == metadata.size() as u64);
        if is_whole {
            return Ok((kept, commit));
        }
        let path = repo.download(path).await.map_err(|error| failure(&error))?;
        Ok((path, commit))
    }

    /// The files of a repository below a folder.
    async fn list(&self, place: &Place, folder: &str) -> std::result::Result<Vec<String>, Failure> {
        let kind = if place.is_dataset { "datasets" } else { "models" };
        let invalid = |_| Failure::lasting(format!("`{}` is no address", self.endpoint));
        let mut url = url::Url::parse(&self.endpoint).map_err(invalid)?;
        {
            let mut segments = url.path_segments_mut().map_err(|()| Failure::lasting("the endpoint has no path"))?;
            segments.pop_if_empty().extend(["api", kind]).extend(place.repo.split('/')).push("tree");
            segments.push(&place.revision).extend(folder.split('/').filter(|word| !word.is_empty()));
        }
        url.query_pairs_mut().append_pair("recursive", "true");
        let mut next = Some(url);
        let mut files = Vec::new();
        while let Some(url) = next {
            let host = (url.scheme().to_owned(), url.authority().to_owned());
            let mut request = client()?.get(url);
            if let Some(token) = &self.token {
                request = request.bearer_auth(token);
            }
            let answer = send(request).await?;
            // A next page elsewhere would be given the token.
            next =
                next_page(answer.headers()).filter(|url| (url.scheme().to_owned(), url.authority().to_owned()) == host);
            let text = answer.bytes().await.map_err(|error| Failure::broken(&error.without_url()))?;
            let unreadable = |error| Failure::lasting(format!("the listing cannot be read: {error}"));
            let entries: Vec<TreeEntry> = serde_json::from_slice(&text).map_err(unreadable)?;
            files.extend(entries.into_iter().filter(|entry| entry.kind == "file").map(|entry| entry.path));
        }
        files.sort();
        Ok(files)
    }
}

/// An entry of a listing.
#[derive(Deserialize)]
struct TreeEntry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
}

/// The address in `Link: <...>; rel="next"`.
fn next_page(headers: &reqwest::header::HeaderMap) -> Option<url::Url> {
    let links = headers.get("link")?.to_str().ok()?;
    let next = links.split(',').find(|link| link.contains("rel=\"next\""))?;
    let (start, end) = (next.find('<')? + 1, next.find('>')?);
    next.get(start..end)?.parse().ok()
}

/// Brings the files of a data set here: one, those that match a pattern, or the data files of a folder.
pub(crate) async fn fetch(source: &Source, remote: &Remote) -> Result<Vec<RemoteFile>> {
    let (address, format) = (source.path.as_str(), source.format);
    let place = Place::parse(address)?;
    let hub = Hub::new(remote, address)?;
    let names_a_file = !is_pattern(&place.path)
        && !place.path.is_empty()
        && (format.is_some() || FileFormat::of(Path::new(&place.path)).is_some());
    let mut paths = if names_a_file {
        vec![place.path.clone()]
    } else {
        let wanted = compile(&place.path)?;
        let before = &place.path[..place.path.find(['*', '?', '[']).unwrap_or(place.path.len())];
        let folder =
            if is_pattern(&place.path) { before.rfind('/').map_or("", |end| &before[..end]) } else { &place.path };
        let listed = retrying_at(address, remote.retry, async || hub.list(&place, folder).await).await?;
        let is_wanted = |path: &String| {
            if is_pattern(&place.path) {
                return wanted.matches_with(path, MATCHING);
            }
            // The card of a data set is Markdown and no data.
            let within = path.strip_prefix(folder).unwrap_or(path).trim_start_matches('/');
            within != "README.md" && is_meant(Path::new(within), format)
        };
        listed.into_iter().filter(is_wanted).collect()
    };
    if let Some(split) = source.split.as_ref().filter(|_| !paths.is_empty()) {
        paths = of_split(paths, &place.path, split, |path| PathBuf::from(path))?;
    }
    let mut files = Vec::with_capacity(paths.len());
    for path in paths {
        let address = place.address(&path);
        let (path, _) = retrying_at(&address, remote.retry, async || hub.file(&place, &path).await).await?;
        files.push(RemoteFile { path, address });
    }
    Ok(files)
}

/// Brings a tokenizer here and gives its folder.
pub(crate) async fn tokenizer(address: &str, remote: &Remote) -> Result<PathBuf> {
    let place = Place::parse(address)?;
    let hub = Hub::new(remote, address)?;
    let main =
        if place.path.is_empty() { "tokenizer.json".to_owned() } else { format!("{}/tokenizer.json", place.path) };
    let shown = place.address(&main);
    let (path, commit) = retrying_at(&shown, remote.retry, async || hub.file(&place, &main).await).await?;
    // All parts are of one commit, whatever is pushed meanwhile.
    let pinned = Place { revision: commit, ..place.clone() };
    for part in TOKENIZER_PARTS {
        let part = if place.path.is_empty() { part.to_owned() } else { format!("{}/{part}", place.path) };
        match retrying(remote.retry, async || hub.file(&pinned, &part).await).await {
            Err(failure) if !failure.is_not_found() => return Err(failure.error(&place.address(&part))),
            _ => {}
        }
    }
    Ok(path.parent().map(Path::to_owned).unwrap_or_default())
}

/// What the client's error means, without addresses.
fn failure(error: &ApiError) -> Failure {
    match error {
        ApiError::RequestError(error) => match error.status() {
            Some(status) => Failure::status(status.as_u16(), None),
            None => Failure::broken(error),
        },
        ApiError::TooManyRetries(inner) => failure(inner),
        ApiError::IoError(error) => Failure::lasting(format!("the cache cannot be used: {error}")),
        ApiError::MissingHeader(name) | ApiError::InvalidHeader(name) => Failure::lasting(format!(
            "the server does not answer as the hub does: the header `{name}` is missing or wrong"
        )),
        ApiError::LockAcquisition(_) => {
            Failure::broken(&std::io::Error::other("another process is bringing the same file"))
        }
        _ => Failure::lasting("the server does not answer as the hub does"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_repository_revision_and_path() {
        let place = |address: &str| {
            Place::parse(address).map(|place| (place.is_dataset, place.repo, place.revision, place.path))
        };
        let is = |dataset: bool, repo: &str, revision: &str, path: &str| {
            (dataset, repo.to_owned(), revision.to_owned(), path.to_owned())
        };
        assert_eq!(place("hf://datasets/o/n/data/*.jsonl").unwrap(), is(true, "o/n", "main", "data/*.jsonl"));
        assert_eq!(place("hf://datasets/o/n@v1.0").unwrap(), is(true, "o/n", "v1.0", ""));
        assert_eq!(
            place("hf://datasets/o/n@refs/convert/parquet/default/train").unwrap(),
            is(true, "o/n", "refs/convert/parquet", "default/train")
        );
        assert_eq!(place("hf://o/n@abc/").unwrap(), is(false, "o/n", "abc", ""));
        for wrong in ["hf://", "hf://datasets/o", "hf://o/", "hf://o/..", "hf://o/n@"] {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }
}
