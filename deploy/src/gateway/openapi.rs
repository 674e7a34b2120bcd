//! `GET /openapi.json`: the description of every path, for programs.

use axum::http::header;
use axum::response::{IntoResponse, Response};

/// The description.
const TEXT: &str = include_str!("openapi.json");

/// Sends the description.
pub async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], TEXT).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn description() -> Value {
        serde_json::from_str(TEXT).unwrap()
    }

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let description = description();
        let described: BTreeSet<&str> = description["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        let routes = crate::gateway::routes();
        assert_eq!(described, routes.iter().map(|(path, _)| *path).collect());
        assert_eq!(description["info"]["version"], env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_path_names_its_parameters() {
        let description = description();
        let mut open = vec![&description];
        while let Some(value) = open.pop() {
            if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
                let place = reference.strip_prefix('#').unwrap();
                assert!(description.pointer(place).is_some(), "{reference}");
            }
            match value {
                Value::Array(values) => open.extend(values),
                Value::Object(values) => open.extend(values.values()),
                _ => {}
            }
        }
        for (path, methods) in description["paths"].as_object().unwrap() {
            let in_path = path.matches('{').count();
            let named = methods.get("parameters").and_then(Value::as_array).map_or(0, Vec::len);
            assert_eq!(named, in_path, "{path}");
        }
    }

    #[test]
    fn kinds_of_problems_are_all_described() {
        let description = description();
        let kinds = description["components"]["schemas"]["Problem"]["properties"]["kind"]["enum"].clone();
        let kinds: BTreeSet<String> = serde_json::from_value(kinds).unwrap();
        assert_eq!(kinds, crate::gateway::problem::Kind::ALL.map(|kind| kind.name()).into());
    }
}
