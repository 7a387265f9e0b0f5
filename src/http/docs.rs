//! The OpenAPI document and its page.
//!
//! The document is generated from the handlers; `docs/openapi.json` is its golden copy, so a change of the contract shows in the
//! diff of a commit. The page is Swagger UI from inside the binary: it loads nothing from elsewhere.

use std::sync::{Arc, LazyLock};

use axum::body::Bytes;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Redirect, Response};
use serde::Serialize;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::{ContentBuilder, RefOr, ResponseBuilder, ResponsesBuilder};
use utoipa::{IntoResponses, OpenApi, ToSchema};
use utoipa_swagger_ui::Config;

use super::context::NoQuery;
use super::problem::{PROBLEM_JSON, Problem};
use super::{batch, classify, decisions, health, metrics, recommend};
use crate::error::ErrorCode;
use crate::event::EventWire;

/// Where the page asks for the document.
const OPENAPI_PATH: &str = "/openapi.json";

/// One exception event.
#[derive(Debug, Serialize, ToSchema)]
#[schema(value_type = EventWire)]
pub struct EventRequest(EventWire);

/// Many exception events.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchRequest {
    pub events: Vec<EventWire>,
}

/// The problems that any resource may answer with.
#[derive(Debug)]
pub struct Problems;

impl IntoResponses for Problems {
    fn responses() -> std::collections::BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let content = || ContentBuilder::new().schema(Some(utoipa::openapi::Ref::from_schema_name("Problem"))).build();
        let response = || {
            let description = "A problem (RFC 9457); `code` says which";
            ResponseBuilder::new().description(description).content(PROBLEM_JSON, content()).build()
        };
        let ranges = ["4XX", "5XX"].map(|range| (range.to_owned(), response()));
        ResponsesBuilder::new().responses_from_iter(ranges).build().into()
    }
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Sluice",
        description = "A governed decision for every fulfilment exception: what it is, what is at stake, what to do next, and whether a machine may do it alone. \
                       Paths also work without `/v1` where the resource is `classify` or `recommend`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    paths(
        classify::classify,
        recommend::recommend,
        batch::classify,
        batch::recommend,
        decisions::decision,
        health::livez,
        health::readyz,
        metrics::metrics
    ),
    components(schemas(Problem)),
    tags((name = "decisions"), (name = "operations"))
)]
struct Api;

/// The OpenAPI 3.1 document of the service.
pub fn document() -> Document {
    Api::openapi()
}

pub(super) async fn openapi(_: NoQuery) -> Response {
    static TEXT: LazyLock<Bytes> =
        LazyLock::new(|| Bytes::from(document().to_json().expect("the document holds strings and numbers only")));
    ([(header::CONTENT_TYPE, "application/json")], TEXT.clone()).into_response()
}

pub(super) async fn index() -> Redirect {
    Redirect::to("/docs/")
}

pub(super) async fn first_page() -> Result<Response, Problem> {
    file("")
}

pub(super) async fn page(path: Result<Path<String>, PathRejection>) -> Result<Response, Problem> {
    // What is no text is the address of nothing.
    let Path(path) = path.map_err(|_| no_page())?;
    file(&path)
}

fn file(path: &str) -> Result<Response, Problem> {
    static CONFIG: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| Arc::new(Config::from(OPENAPI_PATH).validator_url("none")));
    let file = utoipa_swagger_ui::serve(path, CONFIG.clone()).map_err(|error| {
        tracing::error!(error = &*error as &dyn std::error::Error, "the documentation page is not readable");
        Problem::new(ErrorCode::Internal, "the documentation page is not readable")
    })?;
    let file = file.ok_or_else(no_page)?;
    let mut response = ([(header::CONTENT_TYPE, file.content_type)], file.bytes).into_response();
    if file.gzpipped {
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Ok(response)
}

fn no_page() -> Problem {
    Problem::new(ErrorCode::NotFound, "no page of the documentation has this address")
}
