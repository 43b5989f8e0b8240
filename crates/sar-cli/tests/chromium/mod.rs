//! Chromium without a window, driven over its DevTools protocol.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::stream::MaybeTlsStream;
use tungstenite::{Message, WebSocket};

use crate::program::skipped;

pub(crate) struct Browser {
    child: Child,
    socket: WebSocket<MaybeTlsStream<TcpStream>>,
    session: Option<String>,
    n_sent: u64,
    /// What the page has told by itself.
    pub(crate) events: Vec<Value>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// None where there is no Chromium, nor what others call the same browser; a line says so.
    pub(crate) fn start() -> Option<Self> {
        let names = ["chromium", "chromium-browser", "google-chrome"];
        let browser = names.into_iter().find_map(Self::start_program);
        if browser.is_none() {
            skipped("there is no chromium");
        }
        browser
    }

    fn start_program(program: &str) -> Option<Self> {
        let profile = tempfile::tempdir().unwrap();
        let mut command = Command::new(program);
        command
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"])
            .args(["--no-first-run", "--disable-background-networking", "--hide-scrollbars"])
            .args(["--disable-dev-shm-usage", "--force-color-profile=srgb"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank");
        let spawned = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.ok()?;
        let mut lines = BufReader::new(child.stderr.take()?).lines().map_while(Result::ok);
        let url =
            lines.find_map(|line| line.strip_prefix("DevTools listening on ").map(str::to_owned));
        // What else it says has to go somewhere.
        std::thread::spawn(move || lines.for_each(drop));
        let (socket, _) = tungstenite::connect(url?).unwrap();
        if let MaybeTlsStream::Plain(stream) = socket.get_ref() {
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        }
        let events = Vec::new();
        let mut browser =
            Self { child, socket, session: None, n_sent: 0, events, _profile: profile };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network", "DOM", "Accessibility"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    pub(crate) fn call(&mut self, method: &str, params: Value) -> Value {
        self.n_sent += 1;
        let mut message = json!({ "id": self.n_sent, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = session.clone().into();
        }
        self.socket.send(Message::text(message.to_string())).unwrap();
        loop {
            let Message::Text(text) = self.socket.read().unwrap() else { continue };
            let answer: Value = serde_json::from_str(&text).unwrap();
            if answer["id"] == self.n_sent {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].clone();
            }
            if answer["method"].is_string() {
                self.events.push(answer);
            }
        }
    }

    /// The value of an expression, awaited.
    pub(crate) fn value(&mut self, expression: &str) -> Value {
        let params = json!({
            "expression": expression, "awaitPromise": true, "returnByValue": true, "userGesture": true,
        });
        let answer = self.call("Runtime.evaluate", params);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    pub(crate) fn until(&mut self, expression: &str) {
        let start = Instant::now();
        while self.value(&format!("!!({expression})")) != true {
            if start.elapsed() > Duration::from_secs(90) {
                let text = self.value("document.body.innerText");
                panic!("never true: {expression}; the page says: {text}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url }));
        self.until("document.body?.dataset.ready === 'yes'");
    }

    /// Presses and releases a key.
    pub(crate) fn key(&mut self, key: &str) {
        let (text, code) = match key {
            " " => (" ", 32),
            "Enter" => ("\r", 13),
            "Tab" => ("", 9),
            "ArrowLeft" => ("", 37),
            "ArrowRight" => ("", 39),
            "ArrowDown" => ("", 40),
            _ => (key, 0),
        };
        let name = if key == " " { "Space" } else { key };
        let kind = if text.is_empty() { "rawKeyDown" } else { "keyDown" };
        let params = json!({ "type": kind, "key": key, "code": name, "text": text, "windowsVirtualKeyCode": code });
        self.call("Input.dispatchKeyEvent", params);
        self.call(
            "Input.dispatchKeyEvent",
            json!({ "type": "keyUp", "key": key, "code": name, "windowsVirtualKeyCode": code }),
        );
    }

    /// Goes on by Tab until an expression is true.
    pub(crate) fn tab_to(&mut self, expression: &str) {
        for _ in 0..30 {
            self.key("Tab");
            if self.value(expression) == true {
                return;
            }
        }
        panic!("never true after Tab: {expression}");
    }

    /// A name for everything that can be used and is to be seen, and up to now no errors and no request to
    /// others than `own`.
    pub(crate) fn well_behaved(&mut self, own: &str) {
        let tree = self.call("Accessibility.getFullAXTree", json!({}));
        let roles = [
            "button",
            "textbox",
            "slider",
            "radio",
            "tab",
            "checkbox",
            "combobox",
            "spinbutton",
            "link",
            "searchbox",
            "img",
            "progressbar",
            "radiogroup",
        ];
        let mut seen = BTreeSet::new();
        for node in tree["nodes"].as_array().unwrap().iter().filter(|node| node["ignored"] != true)
        {
            let role = node["role"]["value"].as_str().unwrap_or_default();
            if roles.contains(&role) {
                let name = node["name"]["value"].as_str().unwrap_or_default();
                assert!(!name.trim().is_empty(), "a {role} without a name: {node}");
                seen.insert(role.to_owned());
            }
        }
        assert!(seen.contains("tab") && seen.contains("button"), "{seen:?}");
        for event in &self.events {
            let params = &event["params"];
            match event["method"].as_str().unwrap() {
                "Network.requestWillBeSent" => {
                    let url = params["request"]["url"].as_str().unwrap();
                    let mut starts = [own, "data:", "blob:", "about:"].into_iter();
                    assert!(
                        starts.any(|start| url.starts_with(start)),
                        "asks another server: {url}"
                    );
                }
                "Runtime.exceptionThrown" => panic!("{params}"),
                "Log.entryAdded" if params["entry"]["level"] == "error" => panic!("{params}"),
                _ => {}
            }
        }
    }

    /// Opens the first picture of the gallery for an edit, and paints a mask by the mouse.
    pub(crate) fn mask_the_first_of_the_gallery(&mut self) {
        self.value("document.querySelector('#gallery li button[aria-label^=\"Edit\"]').click()");
        self.until("document.querySelector('#canvas').width === 64");
        let at = self.value(
            "(() => { scrollTo(0, 0); const box = document.querySelector('#canvas').getBoundingClientRect(); return [box.left, box.top, box.width]; })()",
        );
        let [left, top, width] = serde_json::from_value::<[f64; 3]>(at).unwrap();
        let point = |x: f64, y: f64| [left + x * width, top + y * width];
        self.drag(&[point(0.35, 0.4), point(0.45, 0.5), point(0.55, 0.45), point(0.65, 0.55)]);
    }

    /// Draws with the mouse through points of the window.
    pub(crate) fn drag(&mut self, points: &[[f64; 2]]) {
        let mut mouse = |kind: &str, [x, y]: [f64; 2]| {
            let buttons = i32::from(kind != "mouseReleased");
            let params = json!({
                "type": kind, "x": x, "y": y, "button": "left", "buttons": buttons, "clickCount": 1,
            });
            self.call("Input.dispatchMouseEvent", params);
        };
        mouse("mousePressed", points[0]);
        points.iter().for_each(|point| mouse("mouseMoved", *point));
        mouse("mouseReleased", points[points.len() - 1]);
    }

    /// The window: size in pixels, and colors.
    pub(crate) fn window(&mut self, [width, height]: [u32; 2], scheme: &str) {
        let mobile = width < 600;
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile });
        self.call("Emulation.setDeviceMetricsOverride", size);
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    /// A picture of the window, where somebody wants to look: `SAR_SCREENSHOTS` names the folder.
    pub(crate) fn look(&mut self, name: &str) {
        use base64::Engine;
        let Some(folder) = std::env::var_os("SAR_SCREENSHOTS") else { return };
        let shot = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        let png = base64::prelude::BASE64_STANDARD.decode(shot["data"].as_str().unwrap()).unwrap();
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), png).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
