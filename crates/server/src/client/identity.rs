//! As whom a client speaks, and what it shows of that with each call.

use std::fmt;

use hadron_proto::etcdserverpb as pb;
use pb::auth_client::AuthClient;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// What calls are made through.
pub(crate) type Connection = InterceptedService<Channel, Shown>;

/// The metadata that chooses a keyspace.
pub(crate) const KEYSPACE: &str = "hadron-keyspace";

/// As whom a client speaks.
#[derive(Clone, Default)]
pub(crate) enum Identity {
    /// Nobody, or whom the certificate names.
    #[default]
    Nobody,
    /// A user, who gets a token for each connection.
    User { name: String, password: String },
    /// Whoever the token was made for.
    Token(String),
}

/// Without secrets.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Identity::Nobody => "Nobody",
            Identity::User { name, .. } => name,
            Identity::Token(_) => "Token",
        })
    }
}

/// A token, if there is one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Token(Option<AsciiMetadataValue>);

/// What is put into each request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shown {
    pub(super) token: Token,
    pub(super) keyspace: Option<AsciiMetadataValue>,
}

impl Interceptor for Shown {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = self.token.value() {
            request.metadata_mut().insert("token", token.clone());
        }
        if let Some(keyspace) = &self.keyspace {
            request.metadata_mut().insert(KEYSPACE, keyspace.clone());
        }
        Ok(request)
    }
}

impl Token {
    /// What is shown, if anything is.
    pub(crate) fn value(&self) -> Option<&AsciiMetadataValue> {
        self.0.as_ref()
    }

    fn new(text: &str) -> Result<Token, Status> {
        let token = text.parse().map_err(|_| Status::invalid_argument("the token is not plain text"))?;
        Ok(Token(Some(token)))
    }
}

impl Identity {
    /// The token to show on a connection; a user gets it now, in the keyspace that it is for. A server without authentication needs
    /// none.
    pub(super) async fn token(
        &self,
        channel: &Channel,
        keyspace: Option<&AsciiMetadataValue>,
    ) -> Result<Token, Status> {
        match self {
            Identity::Nobody => Ok(Token::default()),
            Identity::Token(token) => Token::new(token),
            Identity::User { name, password } => {
                let request = pb::AuthenticateRequest { name: name.clone(), password: password.clone() };
                let shown = Shown { keyspace: keyspace.cloned(), ..Shown::default() };
                match AuthClient::with_interceptor(channel.clone(), shown).authenticate(request).await {
                    Ok(answer) => Token::new(&answer.into_inner().token),
                    Err(status) if status.message() == "etcdserver: authentication is not enabled" => {
                        Ok(Token::default())
                    }
                    Err(status) => Err(status),
                }
            }
        }
    }
}
