//! Who may ask: names in `Host`, other pages in the browser, the token; and what every answer says.

use std::net::SocketAddr;

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderName};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use crate::answers::Refusal;
use crate::page::POLICY;
use crate::settings::named;

/// What requests are checked against.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    address: SocketAddr,
    token: Option<String>,
    /// What browsers call it behind a proxy; only with a token.
    origin: Option<String>,
    cookie: String,
}

impl Guard {
    pub(crate) fn new(address: SocketAddr, token: Option<String>, origin: Option<String>) -> Self {
        // Browsers keep cookies of all ports together.
        Self { address, token, origin, cookie: format!("sar-token-{}", address.port()) }
    }

    fn check(&self, request: &Request) -> Result<(), Refusal> {
        let headers = request.headers();
        let host = only(headers, &header::HOST)
            .ok_or_else(|| Refusal::bad("Host: exactly one is needed"))?;
        let elsewhere = |what: &str| {
            let why = format!("{what}: the request comes from or means another place");
            Err(Refusal::new(StatusCode::FORBIDDEN, why))
        };
        let is_other = |authority: &axum::http::uri::Authority| authority.as_str() != host;
        if !self.is_own_name(host) || request.uri().authority().is_some_and(is_other) {
            return elsewhere("Host");
        }
        if headers.contains_key(header::ORIGIN) {
            let origin = only(headers, &header::ORIGIN).unwrap_or_default();
            if !self.is_same_place(origin, host) {
                return elsewhere("Origin");
            }
        }
        // A link to the page is fine, pictures and answers in other pages are not.
        let is_page = request.uri().path() == "/" && request.method() == Method::GET;
        let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
        if !is_page && matches!(site, Some(b"cross-site" | b"same-site")) {
            return elsewhere("Sec-Fetch-Site");
        }
        Ok(())
    }

    /// Whether a name means this server and no other: another page cannot reach it by a name of its own
    /// that it makes point here. Beyond the loopback the token says who may ask.
    fn is_own_name(&self, host: &str) -> bool {
        if !self.address.ip().is_loopback() || self.is_behind(host) {
            return true;
        }
        let port = self.address.port();
        let (name, its_port) = match host.rsplit_once(':') {
            Some((name, digits)) if !digits.ends_with(']') => (name, digits.parse().ok()),
            _ => (host, Some(80)),
        };
        let is_local = ["localhost", "127.0.0.1", "[::1]"].contains(&name)
            || name == self.address.ip().to_string();
        is_local && its_port == Some(port)
    }

    /// Whether this is its name behind a proxy.
    fn is_behind(&self, host: &str) -> bool {
        self.token.is_some() && self.origin.as_deref().and_then(named) == Some(host)
    }

    /// Whether a request that means `host` comes from a page of this server.
    fn is_same_place(&self, origin: &str, host: &str) -> bool {
        // Whether or not the proxy has put another name into `Host`.
        if self.token.is_some() && self.origin.as_deref() == Some(origin) {
            return true;
        }
        let name = origin.strip_prefix("http://").or(origin.strip_prefix("https://"));
        // Behind a proxy it has this origin and no other.
        name == Some(host) && !self.is_behind(host)
    }

    fn is_known(&self, given: &[u8]) -> bool {
        let token = self.token.as_ref().map_or(&[][..], String::as_bytes);
        token.ct_eq(given).into()
    }

    /// Whether the request knows the token, if there is one.
    fn is_let_in(&self, headers: &HeaderMap) -> bool {
        if self.token.is_none() {
            return true;
        }
        let bearer = only(headers, &header::AUTHORIZATION)
            .and_then(|value| value.strip_prefix("Bearer "))
            .map(str::trim);
        let cookies =
            headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let cookies = cookies.flat_map(|value| value.split(';'));
        let cookies = cookies.filter_map(|cookie| cookie.trim().split_once('='));
        let cookies = cookies.filter(|(name, _)| *name == self.cookie).map(|(_, value)| value);
        bearer.into_iter().chain(cookies).any(|given| self.is_known(given.as_bytes()))
    }

    /// The page with the token in its address: the token becomes a cookie, and leaves the address.
    fn welcome(&self, request: &Request) -> Option<Response> {
        self.token.as_ref()?;
        let uri = request.uri();
        if uri.path() != "/" || request.method() != Method::GET {
            return None;
        }
        let token = uri.query()?.strip_prefix("token=")?;
        if !self.is_known(token.as_bytes()) {
            return None;
        }
        let is_over_tls = self.origin.as_ref().is_some_and(|origin| origin.starts_with("https:"));
        let secure = if is_over_tls { "; Secure" } else { "" };
        let cookie = format!("{}={token}; Path=/; HttpOnly; SameSite=Lax{secure}", self.cookie);
        let cookie = HeaderValue::from_str(&cookie).ok()?;
        let place = HeaderValue::from_static("/");
        let headers = [(header::SET_COOKIE, cookie), (header::LOCATION, place)];
        Some((StatusCode::SEE_OTHER, headers).into_response())
    }
}

/// The value of a header that is there once, and text.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// Stands before everything.
pub(crate) async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let mut response = match guard.check(&request) {
        Err(refusal) => refusal.into_response(),
        Ok(()) => match guard.welcome(&request) {
            Some(welcome) => welcome,
            None if guard.is_let_in(request.headers()) => next.run(request).await,
            None => Refusal::new(
                StatusCode::UNAUTHORIZED,
                "a token is needed: open /?token=TOKEN, or send Authorization: Bearer TOKEN",
            )
            .into_response(),
        },
    };
    // What extractors refuse is text.
    let content_type = response.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    if response.status().is_client_error() && content_type != Some(b"application/json") {
        let why = "the address is not understood";
        response = Refusal::new(response.status(), why).into_response();
    }
    let headers = response.headers_mut();
    for (name, value) in [
        ("content-security-policy", POLICY),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cross-origin-opener-policy", "same-origin"),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn request(path: &str, headers: &[(&'static str, &str)]) -> Request {
        let builder = Request::builder().uri(path);
        let add = |builder: axum::http::request::Builder, (name, value): &(&'static str, &str)| {
            builder.header(*name, *value)
        };
        headers.iter().fold(builder, add).body(Body::empty()).unwrap()
    }

    #[test]
    fn only_names_of_this_server_are_answered() {
        let guard = Guard::new("127.0.0.1:8123".parse().unwrap(), None, None);
        let allows =
            |headers: &[(&'static str, &str)]| guard.check(&request("/api/model", headers)).is_ok();
        for host in ["127.0.0.1:8123", "localhost:8123", "[::1]:8123"] {
            assert!(allows(&[("host", host)]), "{host}");
            assert!(allows(&[("host", host), ("origin", &format!("http://{host}"))]), "{host}");
        }
        for host in ["evil.example:8123", "127.0.0.1", "127.0.0.1:80", "localhost:81234", "", "::1"]
        {
            assert!(!allows(&[("host", host)]), "{host}");
        }
        let own = ("host", "localhost:8123");
        assert!(!allows(&[]));
        assert!(!allows(&[own, own]));
        assert!(!allows(&[own, ("origin", "http://evil.example")]));
        assert!(!allows(&[own, ("origin", "null")]));
        assert!(!allows(&[own, ("origin", "http://localhost:8124")]));
        assert!(!allows(&[own, ("sec-fetch-site", "cross-site")]));
        assert!(allows(&[own, ("sec-fetch-site", "same-origin")]));
        let link = request("/", &[own, ("sec-fetch-site", "cross-site")]);
        assert!(guard.check(&link).is_ok());
        let absolute = request("http://evil.example/api/model", &[own]);
        assert!(guard.check(&absolute).is_err());
    }

    #[test]
    fn a_name_behind_a_proxy_counts_with_a_token_alone() {
        let address = "127.0.0.1:8123".parse().unwrap();
        let name = Some("https://sar.example.com".to_owned());
        let token = Some("0123456789abcdef".to_owned());
        let guard = Guard::new(address, token.clone(), name.clone());
        let allows = |guard: &Guard, host: &str, origin: Option<&str>| {
            let origin = origin.map(|origin| ("origin", origin));
            let headers: Vec<_> = [("host", host)].into_iter().chain(origin).collect();
            guard.check(&request("/api/sample", &headers)).is_ok()
        };
        let (named, own) = ("sar.example.com", "127.0.0.1:8123");
        let origin = Some("https://sar.example.com");
        // As the proxy passes the name on, and as it puts its own into the place of it.
        assert!(allows(&guard, named, None) && allows(&guard, named, origin));
        assert!(allows(&guard, own, origin) && allows(&guard, own, Some("http://127.0.0.1:8123")));
        for other in [
            "http://sar.example.com",
            "https://sar.example.com:8443",
            "https://sar.example.com.evil.example",
            "https://evil.example",
            "null",
        ] {
            assert!(!allows(&guard, named, Some(other)) && !allows(&guard, own, Some(other)));
        }
        for host in ["sar.example.com:443", "evil.example", "sar.example.com.evil.example"] {
            assert!(!allows(&guard, host, None) && !allows(&guard, host, origin), "{host}");
        }
        for guard in [Guard::new(address, None, name), Guard::new(address, token, None)] {
            assert!(!allows(&guard, named, None) && !allows(&guard, own, origin));
        }
    }

    #[test]
    fn the_cookie_of_a_name_with_tls_travels_with_tls_alone() {
        let cookie = |origin: Option<&str>| {
            let token = Some("0123456789abcdef".to_owned());
            let address = "127.0.0.1:8123".parse().unwrap();
            let guard = Guard::new(address, token, origin.map(str::to_owned));
            let welcome = guard.welcome(&request("/?token=0123456789abcdef", &[])).unwrap();
            welcome.headers()[header::SET_COOKIE].to_str().unwrap().to_owned()
        };
        assert!(cookie(Some("https://sar.example.com")).ends_with("; Secure"));
        assert!(!cookie(Some("http://sar.example.com")).contains("Secure"));
        assert!(!cookie(None).contains("Secure"));
    }

    #[test]
    fn a_token_comes_as_header_or_cookie() {
        let token = "0123456789abcdef".to_owned();
        let guard = Guard::new("10.0.0.1:80".parse().unwrap(), Some(token), None);
        let lets_in =
            |headers: &[(&'static str, &str)]| guard.is_let_in(request("/", headers).headers());
        assert!(lets_in(&[("authorization", "Bearer 0123456789abcdef")]));
        assert!(lets_in(&[("cookie", "a=b; sar-token-80=0123456789abcdef")]));
        for bad in ["", "Bearer", "Bearer 0123456789abcde", "Basic 0123456789abcdef"] {
            assert!(!lets_in(&[("authorization", bad)]), "{bad}");
        }
        assert!(!lets_in(&[]));
        assert!(!lets_in(&[("cookie", "sar-token-81=0123456789abcdef; sar-token-80=")]));
        let welcome = |path| guard.welcome(&request(path, &[])).is_some();
        assert!(welcome("/?token=0123456789abcdef"));
        assert!(!welcome("/?token=0123456789abcdeg"));
        assert!(!welcome("/api/model?token=0123456789abcdef"));
    }
}
