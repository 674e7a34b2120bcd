//! Who may ask: the bearer token, and where there is none, what a browser must not be used for.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Uri, header};
use axum::middleware::Next;
use axum::response::Response;

use super::problem::{Kind, Problem};
use super::state::App;

/// Paths that need no token: they say nothing but whether the service is there, and the page, which asks for the token. Which
/// models there are is not among it.
const OPEN: [&str; 4] = ["/", "/livez", "/readyz", "/health"];

/// Lets a request through that may ask.
pub async fn check(State(app): State<App>, request: Request, next: Next) -> Result<Response, Problem> {
    let headers = request.headers();
    match &app.token {
        Some(token) if !is_open(request.uri()) => bearer(headers, token.exposed())?,
        Some(_) => {}
        None => at_home(headers, &app.http.hosts)?,
    }
    Ok(next.run(request).await)
}

fn is_open(uri: &Uri) -> bool {
    OPEN.contains(&uri.path()) && (uri.path() == OPEN[0] || uri.query().is_none())
}

fn bearer(headers: &HeaderMap, token: &str) -> Result<(), Problem> {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.split_once(' '));
    let given = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim());
    let hint = "send the header `Authorization: Bearer TOKEN`, with the token of http.token_file";
    match given {
        Some(given) if is_same(given.as_bytes(), token.as_bytes()) => Ok(()),
        Some(_) => Err(Problem::new(Kind::Unauthorized, "request refused: the token is wrong").hint(hint)),
        None => Err(Problem::new(Kind::Unauthorized, "request refused: it has no token").hint(hint)),
    }
}

/// Compares in a time that does not tell where the first difference is.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

/// Refuses what a web page of elsewhere makes a browser on this machine send.
fn at_home(headers: &HeaderMap, names: &[String]) -> Result<(), Problem> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST).unwrap_or_default();
    let name = name_of(host);
    let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    if !host.is_empty() && !is_address && !names.iter().any(|known| known.eq_ignore_ascii_case(name)) {
        let shown: String = name.chars().take(80).collect();
        let problem = Problem::new(Kind::ForbiddenOrigin, format!("request refused: this is not the host {shown:?}"));
        return Err(problem.hint("name this host by its address, add the name to http.hosts, or set http.token_file"));
    }
    let origin = text(header::ORIGIN).map(|origin| origin.split_once("://").map_or(origin, |(_, host)| host));
    match origin {
        Some(origin) if !origin.eq_ignore_ascii_case(host) => {
            let text = "request refused: it comes from a web page of another host";
            Err(Problem::new(Kind::ForbiddenOrigin, text).hint("set http.token_file, and send the token"))
        }
        _ => Ok(()),
    }
}

/// Name or address of `name:port` or `[address]:port`.
fn name_of(host: &str) -> &str {
    match host.rfind(':') {
        Some(colon) if !host.ends_with(']') => &host[..colon],
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(given: &[(&'static str, &str)]) -> HeaderMap {
        given.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_the_whole_token_lets_through() {
        assert!(bearer(&headers(&[("authorization", "Bearer geheim")]), "geheim").is_ok());
        assert!(bearer(&headers(&[("authorization", "bearer  geheim")]), "geheim").is_ok());
        for wrong in ["Bearer geheim1", "Bearer gehei", "Bearer Geheim", "Basic geheim", "geheim", "Bearer "] {
            let problem = bearer(&headers(&[("authorization", wrong)]), "geheim").unwrap_err();
            assert_eq!(problem.kind, Kind::Unauthorized, "{wrong}");
            assert!(!format!("{problem:?}").contains("geheim"), "{problem:?}");
        }
        assert!(bearer(&HeaderMap::new(), "geheim").is_err());
    }

    #[test]
    fn a_page_of_elsewhere_is_refused_where_there_is_no_token() {
        let names = ["localhost".to_owned()];
        let asked = |given: &[(&'static str, &str)]| at_home(&headers(given), &names).map_err(|p| p.kind);
        for host in ["127.0.0.1:8099", "127.0.0.1", "[::1]:8099", "[::1]", "localhost:8099", "LOCALHOST"] {
            assert_eq!(asked(&[("host", host)]), Ok(()), "{host}");
        }
        assert_eq!(asked(&[]), Ok(()));
        assert_eq!(asked(&[("host", "localhost:1"), ("origin", "http://localhost:1")]), Ok(()));
        let refused = Err(Kind::ForbiddenOrigin);
        assert_eq!(asked(&[("host", "evil.example:8099")]), refused);
        assert_eq!(asked(&[("host", "localhost:1"), ("origin", "http://evil.example")]), refused);
        assert_eq!(asked(&[("host", "localhost:1"), ("origin", "null")]), refused);
    }
}
