//! Errors as OpenAI's clients expect them: a status, and `{"error": {"message", "type", "param", "code"}}`.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::error::Error;

/// An answer that is an error.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub status: StatusCode,
    pub message: String,
    /// JSON path of the field of the request, if there is one to blame.
    pub param: Option<String>,
    /// What programs compare: `invalid_request`, `overloaded`, …
    pub code: &'static str,
    /// When to try again.
    pub retry_after: Option<Duration>,
}

/// The body of every error.
#[derive(Serialize)]
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
pub(crate) struct ErrorBody {
    /// What went wrong.
    pub error: ErrorObject,
}

/// What went wrong.
#[derive(Serialize)]
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
pub(crate) struct ErrorObject {
    /// A sentence with the value found and the bound.
    pub message: String,
    /// `invalid_request_error`, `authentication_error`, `permission_error`, `not_found_error`, `overloaded_error`, `timeout_error`, `server_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// JSON path of the field of the request, if there is one to blame.
    pub param: Option<String>,
    /// What programs compare.
    pub code: &'static str,
}

impl ApiError {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, message: message.into(), param: None, code, retry_after: None }
    }

    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> ApiError {
        Error::invalid(field, message).into()
    }

    pub fn not_found(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// A panic of ours.
    pub fn bug() -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "bug", "a bug of the server's")
    }

    /// OpenAI's family of a status.
    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::TOO_MANY_REQUESTS => "overloaded_error",
            StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => "timeout_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        }
    }

    /// The JSON body.
    pub fn body(&self) -> ErrorBody {
        let (message, param) = (self.message.clone(), self.param.clone());
        ErrorBody { error: ErrorObject { message, kind: self.kind(), param, code: self.code } }
    }

    /// The JSON body, written.
    pub fn json(&self) -> Vec<u8> {
        // Strings and nulls cannot fail to be written.
        serde_json::to_vec(&self.body()).unwrap_or_default()
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> ApiError {
        let status = match &error {
            Error::Invalid { .. } | Error::Unsupported(_) => StatusCode::BAD_REQUEST,
            Error::Overloaded(_) => StatusCode::TOO_MANY_REQUESTS,
            Error::Deadline(_) => StatusCode::GATEWAY_TIMEOUT,
            Error::Dead(_) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let param = match &error {
            Error::Invalid { field, .. } => Some(field.clone()),
            _ => None,
        };
        ApiError { param, ..ApiError::new(status, error.kind(), error.to_string()) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let json = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut response = (self.status, [json], self.json()).into_response();
        let headers = response.headers_mut();
        if let Some(after) = self.retry_after {
            // Whole seconds are the standard's; clients of OpenAI's read the other one first.
            headers
                .insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs_f64().ceil().max(1.0) as u64));
            headers.insert("retry-after-ms", HeaderValue::from(after.as_millis().max(1) as u64));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            // Browsers ask for a password then: any name, the key as password. Chromium overlooks both schemes if one has no parameter.
            let schemes = "Basic realm=\"sidereal\", Bearer realm=\"sidereal\"";
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(schemes));
        }
        if matches!(self.status, StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE) {
            // The rest of the body is not read.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
