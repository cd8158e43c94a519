//! What the environment says of the hub, under the names that its other programs read.

use std::path::PathBuf;
use std::time::Duration;

use super::error::{Error, Result};

/// Where the hub and its cache are.
#[derive(Clone)]
pub struct Settings {
    /// `HF_ENDPOINT`: scheme and host, without a slash at the end.
    pub endpoint: String,
    /// `HF_HUB_CACHE`, or `hub` in `HF_HOME`, or in `huggingface` in `XDG_CACHE_HOME` or `~/.cache`.
    pub cache: PathBuf,
    /// `HF_TOKEN`, or what the file `HF_TOKEN_PATH`, or `token` in `HF_HOME`, holds.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE`: nothing but the cache is asked.
    pub offline: bool,
    /// What the file `SSL_CERT_FILE`, or else `REQUESTS_CA_BUNDLE`, holds: the certificates that are believed, in place of those
    /// of the web's authorities.
    pub certificates: Option<Vec<u8>>,
    /// `HF_HUB_DOWNLOAD_TIMEOUT`, in seconds: after so long without an answer, or without a byte, a request is given up and
    /// made again.
    pub timeout: Duration,
    /// The pause before the second try; each later one is twice as long.
    pub pause: Duration,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the token: what is printed may be kept.
        f.debug_struct("Settings").field("endpoint", &self.endpoint).field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl Settings {
    /// Those of the process's environment.
    ///
    /// # Errors
    /// [`Error::Setting`] where a variable makes no sense, or no folder can be told.
    pub fn from_env() -> Result<Settings> {
        Settings::read(|name| std::env::var_os(name)?.into_string().ok().filter(|value| !value.is_empty()))
    }

    /// Those of variables.
    pub(super) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Settings> {
        let bad = |variable, reason: &str| Err(Error::Setting { variable, reason: reason.into() });
        let is_on = |name: &str| {
            variable(name)
                .is_some_and(|value| ["1", "true", "yes", "on"].contains(&value.to_ascii_lowercase().as_str()))
        };
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let endpoint = endpoint.trim_end_matches('/').to_string();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return bad("HF_ENDPOINT", "expected an address such as https://huggingface.co");
        }
        let path = |name: &str| {
            let value = variable(name)?;
            let in_home = value.strip_prefix("~/").and_then(|rest| Some(PathBuf::from(variable("HOME")?).join(rest)));
            Some(in_home.unwrap_or_else(|| value.into()))
        };
        let user = path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")));
        let home = path("HF_HOME").or_else(|| user.map(|user| user.join("huggingface")));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let Some(cache) = cache.or_else(|| home.as_ref().map(|home| home.join("hub"))) else {
            return bad("HF_HOME", "is not set, nor is HOME: there is no place for what the hub sends");
        };
        let file = path("HF_TOKEN_PATH").or_else(|| home.map(|home| home.join("token")));
        let kept = || file.and_then(|file| std::fs::read_to_string(file).ok());
        let token = variable("HF_TOKEN").or_else(kept).map(|token| token.trim().to_string());
        let token = token.filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return bad("HF_TOKEN", "holds what cannot be in a token");
        }
        let certificates =
            ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"].into_iter().find_map(|name| Some((name, path(name)?)));
        let certificates = certificates.map(|(variable, path)| {
            let unread =
                |error| Error::Setting { variable, reason: format!("cannot read {}: {error}", path.display()) };
            std::fs::read(&path).map_err(unread)
        });
        let certificates = certificates.transpose()?;
        let offline = is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE");
        let timeout = match variable("HF_HUB_DOWNLOAD_TIMEOUT").map(|value| value.parse::<u64>()) {
            None => 30,
            Some(Ok(seconds @ 1..=3600)) => seconds,
            Some(_) => return bad("HF_HUB_DOWNLOAD_TIMEOUT", "expected seconds, from 1 to 3600"),
        };
        let (timeout, pause) = (Duration::from_secs(timeout), Duration::from_secs(1));
        Ok(Settings { endpoint, cache, token, offline, certificates, timeout, pause })
    }
}
