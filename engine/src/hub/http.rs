//! Requests: redirects followed, tokens given to the hub alone, what passes tried again, what does not told.

use std::cell::Cell;
use std::time::Duration;

use ureq::http::{HeaderMap, Response};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::cache::Kind;
use super::conversion::BOT;
use super::error::Error;
use super::settings::Settings;
use super::{Event, OnEvent};

/// Tries after the first.
pub const RETRIES: u32 = 4;
const REDIRECTS: usize = 10;
/// The longest pause that a hub is obeyed in.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Why a try failed, and how long to wait for the next if that may help.
pub struct Failed {
    pub error: Error,
    pub retry: Option<Duration>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed { error, retry: None }
    }
}

/// Speaks with the hub about one repository.
pub struct Http<'a> {
    agent: Agent,
    settings: &'a Settings,
    /// What was asked for, for messages.
    id: String,
    kind: Kind,
    repo: &'a str,
    revision: &'a str,
    on_event: &'a OnEvent<'a>,
    /// Whether it has ever answered: one that has not will hardly do so in a few seconds.
    reached: Cell<bool>,
}

impl<'a> Http<'a> {
    pub fn new(
        settings: &'a Settings,
        kind: Kind,
        id: String,
        repo: &'a str,
        revision: &'a str,
        on_event: &'a OnEvent<'a>,
    ) -> Http<'a> {
        // A body may take hours as long as it moves.
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("perp-engine/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().root_certs(roots(settings)).build())
            .timeout_resolve(Some(settings.timeout))
            .timeout_connect(Some(settings.timeout))
            .timeout_per_read(Some(settings.timeout))
            .build();
        Http { agent: config.into(), settings, id, kind, repo, revision, on_event, reached: Cell::new(false) }
    }

    /// Tells of what happens.
    pub fn tell(&self, event: Event<'_>) {
        (self.on_event)(event);
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn settings(&self) -> &Settings {
        self.settings
    }

    /// Where the API tells of the repository at the revision.
    pub fn info_url(&self) -> String {
        let Settings { endpoint, .. } = self.settings;
        format!("{endpoint}/api/{}/{}/revision/{}", self.kind.plural(), self.repo, encode(self.revision, ""))
    }

    /// Where the API tells of the conversion bot's open pull requests, a page of them.
    pub fn conversions_url(&self, page: usize) -> String {
        let Settings { endpoint, .. } = self.settings;
        let wanted = format!("p={page}&type=pull_request&status=open&author={BOT}");
        format!("{endpoint}/api/{}/{}/discussions?{wanted}", self.kind.plural(), self.repo)
    }

    /// Where a file lies.
    pub fn file_url(&self, commit: &str, name: &str) -> String {
        let Settings { endpoint, .. } = self.settings;
        let prefix = if self.kind == Kind::Data { "datasets/" } else { "" };
        format!("{endpoint}/{prefix}{}/resolve/{commit}/{}", self.repo, encode(name, "/"))
    }

    /// Tries until it works, fails for good, or has failed too often.
    pub fn retried<T>(&self, mut attempt: impl FnMut() -> Result<T, Failed>) -> Result<T, Error> {
        let mut tries = 0;
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(Failed { error, retry: Some(wait) }) if tries < RETRIES => self.pause(&error, tries, wait),
                Err(Failed { error, .. }) => return Err(error),
            }
            tries += 1;
        }
    }

    /// Waits before the next try, each time twice as long.
    pub fn pause(&self, error: &Error, tries: u32, at_least: Duration) {
        let pause = (self.settings.pause * 2u32.pow(tries.min(6))).max(at_least).min(LONGEST_PAUSE);
        self.tell(Event::Pause { error, pause });
        std::thread::sleep(pause);
    }

    /// What is known of a file without fetching it: the first answer that says the file's own checksum and size.
    pub fn head(&self, url: &str) -> Result<Response<Body>, Failed> {
        self.send(url, |agent, url| agent.head(url), |headers| headers.contains_key("x-linked-etag"))
    }

    /// A body, from a byte on.
    pub fn get(&self, url: &str, from: u64) -> Result<Response<Body>, Failed> {
        let get = |agent: &Agent, url: &str| {
            let request = agent.get(url);
            if from == 0 { request } else { request.header("Range", format!("bytes={from}-")) }
        };
        self.send(url, get, |_| false)
    }

    fn send(
        &self,
        url: &str,
        request: impl Fn(&Agent, &str) -> ureq::RequestBuilder<ureq::typestate::WithoutBody>,
        enough: impl Fn(&HeaderMap) -> bool,
    ) -> Result<Response<Body>, Failed> {
        let mut url = url.to_string();
        for _ in 0..=REDIRECTS {
            let mut request = request(&self.agent, &url);
            // Never to the hosts that the hub sends us to: their addresses are signed.
            if let Some(token) =
                self.settings.token.as_ref().filter(|_| origin(&url) == origin(&self.settings.endpoint))
            {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|error| self.failed(&error, &url))?;
            self.reached.set(true);
            let status = response.status().as_u16();
            match status {
                200 | 206 | 416 => return Ok(response),
                300..400 if enough(response.headers()) => return Ok(response),
                300..400 => {
                    let location = response.headers().get("location").and_then(|value| value.to_str().ok());
                    let next = location.and_then(|location| resolve(&url, location));
                    url = next.ok_or_else(|| self.odd(&url, format!("{status} to nowhere")))?;
                }
                _ => return Err(self.refused(&response, &url)),
            }
        }
        Err(self.odd(&url, format!("more than {REDIRECTS} redirects")).into())
    }

    /// An answer that no hub gives.
    pub fn odd(&self, url: &str, reason: impl Into<String>) -> Error {
        Error::Answer { id: self.id.clone(), url: without_query(url), reason: reason.into() }
    }

    fn failed(&self, error: &ureq::Error, url: &str) -> Failed {
        let reason = one_line(&error.to_string());
        match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::Protocol(_) | ureq::Error::Tls(_) => {
                self.odd(url, reason).into()
            }
            _ => {
                let endpoint = origin(url).to_string();
                let retry = (self.reached.get() || matches!(error, ureq::Error::Timeout(_))).then_some(Duration::ZERO);
                Failed { error: Error::Unreachable { id: self.id.clone(), endpoint, reason }, retry }
            }
        }
    }

    /// The error of a status that is no success.
    fn refused(&self, response: &Response<Body>, url: &str) -> Failed {
        let (id, kind) = (self.id.clone(), self.kind.name());
        let header =
            |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let has_token = self.settings.token.is_some();
        let status = response.status().as_u16();
        let of_hub = origin(url) == origin(&self.settings.endpoint);
        let error = match (status, header("x-error-code")) {
            // A storage that the hub sent us to knows nothing of repositories.
            (status, _) if !of_hub => Error::Status { id, url: without_query(url), status },
            (_, "GatedRepo") => {
                let prefix = if self.kind == Kind::Data { "datasets/" } else { "" };
                let page = format!("{}/{prefix}{}", self.settings.endpoint, self.repo);
                Error::Gated { id, page, token: if has_token { "the one given may not" } else { "there is none" } }
            }
            (_, "RevisionNotFound") => Error::NoRevision { id, revision: self.revision.into() },
            (404, "EntryNotFound") => self.odd(url, "it lists this file and does not have it"),
            (401 | 403, code) if has_token && code != "RepoNotFound" => Error::Token { id, status },
            (401 | 403 | 404 | 410, _) => Error::NoRepo { id, kind },
            (429, _) => Error::TooMany { id },
            (status, _) => Error::Status { id, url: without_query(url), status },
        };
        let after = header("retry-after").parse().map_or(Duration::ZERO, Duration::from_secs);
        // A storage's 403 is that of a signature which is too old: the next try begins at the hub.
        let passes = matches!(status, 408 | 429 | 500..=599) || status == 403 && !of_hub;
        let retry = passes.then_some(after);
        Failed { error, retry }
    }
}

/// Whose certificates are believed: those of the settings' file, which [`Settings`] has read, or the web's.
fn roots(settings: &Settings) -> RootCerts {
    let certificates = |pem: &Vec<u8>| {
        let items = parse_pem(pem).filter_map(Result::ok);
        let certificates = items.filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        });
        RootCerts::from(certificates)
    };
    settings.certificates.as_ref().map_or(RootCerts::WebPki, certificates)
}

/// An address for messages: what stands behind a question mark may be a signature.
fn without_query(url: &str) -> String {
    url.split('?').next().unwrap_or_default().into()
}

/// Scheme, host and port.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url[host..].find(['/', '?', '#']).map_or(url.len(), |at| host + at);
    &url[..end]
}

/// Where a redirect leads. Not from an encrypted address to one that is not.
fn resolve(from: &str, location: &str) -> Option<String> {
    let absolute = location.starts_with("https://") || location.starts_with("http://");
    let next = match location.strip_prefix('/') {
        _ if absolute => location.to_string(),
        Some(rest) if !rest.starts_with('/') => format!("{}{location}", origin(from)),
        _ => return None,
    };
    (next.starts_with("https://") || from.starts_with("http://")).then_some(next)
}

/// Percent-encodes all but unreserved characters and those in `also`.
fn encode(text: &str, also: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || also.as_bytes().contains(&byte) {
            encoded.push(byte.into());
        } else {
            encoded += &format!("%{byte:02X}");
        }
    }
    encoded
}

pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
