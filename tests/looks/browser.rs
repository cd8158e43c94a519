//! A headless Chromium, driven over the DevTools protocol through a pipe: JSON messages that end in a zero byte.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A browser with one page.
pub struct Browser {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    session: String,
    last: u64,
    /// What the page complained of.
    pub complaints: Vec<String>,
    _profile: TempDir,
}

/// Where the browser is; with PERP_ENGINE_CHROMIUM, there.
fn program() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("PERP_ENGINE_CHROMIUM") {
        return Some(named.into());
    }
    let folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH")?).collect();
    let names = ["chromium", "chromium-browser", "google-chrome", "chrome"];
    names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).find(|path| path.is_file())
}

impl Browser {
    /// Starts one, where there is one.
    pub fn start() -> Option<Browser> {
        let Some(program) = program() else {
            // Not by eprintln!, which a test that passes keeps to itself.
            let said = "SKIPPED: no Chromium on this machine, so no page was looked at; install the package chromium\n";
            std::io::stderr().write_all(said.as_bytes()).unwrap();
            return None;
        };
        let profile = TempDir::new().unwrap();
        // The pipe is file descriptors 3 and 4, and a child of Rust's has 0, 1 and 2.
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 0</dev/null 1>/dev/null"])
            .arg(program)
            .args(["--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run"])
            .args(["--disable-dev-shm-usage", "--hide-scrollbars", "--disable-background-networking"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let (session, complaints) = (String::new(), Vec::new());
        let mut browser = Browser { child, to, from, session, last: 0, complaints, _profile: profile };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        browser.session = attached["sessionId"].as_str().unwrap().into();
        for domain in ["Page.enable", "Runtime.enable", "Log.enable", "Network.enable"] {
            browser.call(domain, json!({}));
        }
        Some(browser)
    }

    /// Calls a method and waits for its answer; what happens meanwhile is heard.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        let mut message = json!({"id": self.last, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let answer = self.next();
            if answer["id"] == self.last {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    fn next(&mut self) -> Value {
        let mut bytes = Vec::new();
        self.from.read_until(0, &mut bytes).unwrap();
        assert_eq!(bytes.pop(), Some(0), "the browser ended");
        let message: Value = serde_json::from_slice(&bytes).unwrap();
        let params = &message["params"];
        match message["method"].as_str() {
            Some("Runtime.exceptionThrown") => self.complaints.push(params.to_string()),
            Some("Runtime.consoleAPICalled") if params["type"] == "error" => self.complaints.push(params.to_string()),
            Some("Log.entryAdded") => self.complaints.push(params["entry"].to_string()),
            Some("Network.requestWillBeSent") => {
                let url = params["request"]["url"].as_str().unwrap_or_default();
                if !url.starts_with("file:") && !url.starts_with("data:") {
                    self.complaints.push(format!("it asks the network for {url}"));
                }
            }
            _ => {}
        }
        message
    }

    /// Sets the window's width and the reader's setting, "light" or "dark".
    pub fn set(&mut self, width: u32, scheme: &str) {
        let phone = width < 500;
        let metrics = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": phone});
        self.call("Emulation.setDeviceMetricsOverride", metrics);
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    /// Opens a file and waits until it is loaded.
    pub fn open(&mut self, path: &Path) {
        self.call("Page.navigate", json!({"url": format!("file://{}", path.display())}));
        while self.next()["method"] != "Page.loadEventFired" {}
    }

    /// The value of an expression in the page.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let result = self.call("Runtime.evaluate", json!({"expression": expression, "returnByValue": true}));
        assert!(result["exceptionDetails"].is_null(), "{result}");
        result["result"]["value"].clone()
    }

    /// The whole page as a PNG, in the folder that PERP_ENGINE_SCREENSHOTS names: for people to look at.
    pub fn picture(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("PERP_ENGINE_SCREENSHOTS") else { return };
        let picture = self.call("Page.captureScreenshot", json!({"captureBeyondViewport": true}));
        let encoded = picture["data"].as_str().unwrap();
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), base64(encoded)).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The bytes of base64 (RFC 4648).
fn base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits: Vec<u32> = text
        .bytes()
        .filter_map(|byte| DIGITS.iter().position(|digit| *digit == byte))
        .map(|digit| digit as u32)
        .collect();
    digits
        .chunks(4)
        .flat_map(|four| {
            let word = four.iter().enumerate().fold(0, |word, (i, digit)| word | digit << (18 - 6 * i));
            word.to_be_bytes()[1..four.len()].to_vec()
        })
        .collect()
}

/// What a page must be, whatever it shows: a list of what is wrong. Contrast is WCAG 2.1's, 4.5 for text as AA asks.
pub const FAULTS: &str = r#"(() => {
  const faults = [];
  const wide = document.documentElement.scrollWidth, room = window.innerWidth;
  if (wide > room) faults.push(`the page is ${wide} wide in ${room}`);
  const probe = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => { probe.clearRect(0, 0, 1, 1); probe.fillStyle = colour; probe.fillRect(0, 0, 1, 1);
    return Array.from(probe.getImageData(0, 0, 1, 1).data); };
  const luminance = ([r, g, b]) => { const f = v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; };
    return .2126 * f(r) + .7152 * f(g) + .0722 * f(b); };
  const contrast = (a, b) => { const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); };
  const ground = element => { for (let e = element; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor);
    if (c[3] === 255) return c; } return [255, 255, 255, 255]; };
  let texts = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || element.closest('title')) continue;
    const box = element.getBoundingClientRect();
    if (!box.width || !box.height) continue;
    texts++;
    const style = getComputedStyle(element), drawn = element.namespaceURI.endsWith('svg');
    const ratio = contrast(rgba(drawn ? style.fill : style.color), ground(element));
    if (ratio < 4.5) faults.push(`"${text.slice(0, 40)}" has a contrast of ${ratio.toFixed(2)}`);
    let size = parseFloat(style.fontSize);
    if (drawn) size *= element.ownerSVGElement.getScreenCTM().a;
    if (size < 10) faults.push(`"${text.slice(0, 40)}" is ${size.toFixed(1)} px high`);
    if (drawn) { const frame = element.ownerSVGElement.getBoundingClientRect();
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1 || box.top < frame.top - 1)
        faults.push(`"${text.slice(0, 40)}" sticks out of its drawing`); }
  }
  if (texts < 50) faults.push(`only ${texts} texts are seen`);
  for (const shape of document.querySelectorAll('figure > svg .line:not(.faint), figure > svg .dot, figure > svg rect')) {
    const style = getComputedStyle(shape);
    const colour = rgba(shape.classList.contains('line') ? style.stroke : style.fill);
    // 3 for what must be told apart in a drawing (WCAG 1.4.11).
    if (contrast(colour, ground(shape)) < 3) faults.push(`a ${shape.tagName} of class ${shape.getAttribute('class')} is faint`);
  }
  for (const svg of document.querySelectorAll('figure > svg'))
    if (!svg.getAttribute('aria-label')) faults.push('a drawing has no name');
  for (const figure of document.querySelectorAll('figure'))
    if (!figure.querySelector('table caption')) faults.push('a figure has no table');
  return [...new Set(faults)];
})()"#;
