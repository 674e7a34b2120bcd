//! `GET /`: the page. One file, which loads nothing: its script and style are allowed by their hashes, and nothing else is.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::{Html, IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

/// The page.
const PAGE: &str = include_str!("page.html");
/// What a browser lets it do.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let (script, style) = (hash("script"), hash("style"));
    format!(
        "default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; img-src blob:; media-src blob:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
});

/// Sends the page.
pub async fn page() -> Response {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, Html(PAGE)).into_response()
}

/// Text of the only element of a name.
fn content(element: &str) -> &'static str {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let content = PAGE.split_once(open.as_str()).and_then(|(_, rest)| rest.split_once(close.as_str()));
    content.map_or("", |(content, _)| content)
}

/// Hash of the only element of a name, as a policy has it.
fn hash(element: &str) -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(content(element))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_loads_nothing_and_has_no_script_or_style_besides_those_that_are_hashed() {
        assert_eq!((PAGE.matches("<script").count(), PAGE.matches("<style").count()), (1, 1));
        assert!(!content("script").is_empty() && !content("style").is_empty());
        let markup = PAGE.replace(content("script"), "").replace(content("style"), "");
        for wrong in [" style=", " onclick=", " onload=", " onerror=", "javascript:", "<link", "<iframe", " src="] {
            assert!(!markup.contains(wrong), "{wrong}");
        }
        for wrong in ["http:", "https:", "innerHTML", "eval(", "document.write"] {
            assert!(!PAGE.contains(wrong), "{wrong}");
        }
        assert!(
            POLICY.starts_with("default-src 'none'; script-src 'sha256-") && !POLICY.contains("unsafe"),
            "{}",
            *POLICY
        );
    }
}
