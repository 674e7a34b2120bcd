//! What must not be shown: passwords, and addresses that hold some. Both are hidden wherever they are formatted or
//! serialized; who needs them asks for them by name.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// What is shown in place of a secret.
const HIDDEN: &str = "(hidden)";
/// Between two servers of an address.
const SEPARATOR: &str = ",";
/// End of what says how to speak to a server, in an address.
const SCHEME_END: &str = "://";

/// A password.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret itself.
    pub fn exposed(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "" } else { HIDDEN })
    }
}

/// Addresses of a broker's servers, with or without a user and a password or a token (`nats://user:password@host:port`,
/// `nats://token@host:port`): one text, separated by commas, or a list of texts, which is kept as such a text.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Address(String);

impl Address {
    /// Each server as it was given, with its user and password. A password that holds a comma is cut at it.
    pub fn servers(&self) -> impl Iterator<Item = &str> {
        self.0.split(SEPARATOR).map(str::trim)
    }

    /// The addresses, with users and passwords.
    pub fn exposed(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same addresses without users and passwords.
    pub fn without_users(&self) -> Self {
        Address(replaced_users(&self.0, ""))
    }

    /// Whether one of them has a user or a token.
    pub fn has_users(&self) -> bool {
        self.0.contains('@')
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_secrets(&self.0))
    }
}

/// A text that may be an address, or hold some, without their users and passwords.
pub fn without_secrets(text: &str) -> String {
    replaced_users(text, &format!("{HIDDEN}@"))
}

/// What stands before each `@`, back to the beginning of the server that it belongs to, replaced. A password may hold
/// characters that end it for who reads addresses to the letter; it is hidden all the same.
fn replaced_users(text: &str, by: &str) -> String {
    let mut parts: Vec<&str> = text.split('@').collect();
    let last = parts.pop().unwrap_or_default();
    let mut shown = String::new();
    for (at, part) in parts.into_iter().enumerate() {
        let begins = match part.rfind(SCHEME_END) {
            Some(scheme) => scheme + SCHEME_END.len(),
            // After a server that had a user too; else nothing of it is known not to be a password.
            None if at > 0 => part.find(',').map_or(0, |comma| comma + 1),
            None => 0,
        };
        shown += &part[..begins];
        shown += by;
    }
    shown + last
}

macro_rules! hidden {
    ($($name:ident: $what:literal, list: $list:literal;)*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.to_string(), f)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                $name(text.to_owned())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                $name(text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Text { what: $what, list: $list }).map($name)
            }
        }
    )*};
}

hidden! {
    Secret: "a password is a text in quotation marks", list: false;
    Address: "an address is a text in quotation marks, or a list of such", list: true;
}

/// Takes a text, or where a `list` may stand several; of anything else it says `what` was expected, and not what was there.
#[derive(Clone, Copy)]
struct Text {
    what: &'static str,
    list: bool,
}

impl<'de> DeserializeSeed<'de> for Text {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<String, E> {
        Err(E::custom(self.what))
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<String, E> {
        Err(E::custom(self.what))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<String, E> {
        Err(E::custom(self.what))
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<String, E> {
        Err(E::custom(self.what))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<String, A::Error> {
        if !self.list {
            return Err(A::Error::custom(self.what));
        }
        let mut texts: Vec<String> = Vec::new();
        while let Some(text) = items.next_element_seed(Text { list: false, ..self })? {
            // Kept as one text, it would be taken for two.
            if text.contains(SEPARATOR) {
                return Err(A::Error::custom("a server in a list holds a comma: write it as %2C in a password"));
            }
            texts.push(text);
        }
        match texts.is_empty() {
            true => Err(A::Error::custom("the list of servers is empty: name one, or leave the key out")),
            false => Ok(texts.join(SEPARATOR)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_without_users_and_passwords_whatever_those_hold() {
        let cases = [
            ("nats://here:4222", "nats://here:4222"),
            ("nats://u:geheim@here:4222", "nats://(hidden)@here:4222"),
            ("nats://geheim@here", "nats://(hidden)@here"),
            ("u:geheim@here", "(hidden)@here"),
            ("nats://u:ge/he?im@here", "nats://(hidden)@here"),
            ("nats://u:geheim,geheim@here", "nats://(hidden)@here"),
            ("nats://u:geheim@geheim@here", "nats://(hidden)@(hidden)@here"),
            ("tls://u:geheim@here:1, tls://v:geheim@there:2", "tls://(hidden)@here:1, tls://(hidden)@there:2"),
            ("u:geheim@here,v:geheim@there", "(hidden)@here,(hidden)@there"),
            ("here,u:geheim@there", "(hidden)@there"),
            ("", ""),
        ];
        for (address, shown) in cases {
            let given = Address::from(address);
            assert_eq!(given.to_string(), shown, "{address}");
            assert_eq!(given.without_users().to_string(), shown.replace("(hidden)@", ""), "{address}");
            assert_eq!(given.exposed(), address);
            let all = format!("{given} {given:?} {}", toml::Value::try_from(&given).unwrap());
            assert!(!all.contains("geheim"), "{all}");
        }
    }

    #[test]
    fn a_list_of_servers_says_the_same_as_one_text_with_commas() {
        #[derive(Debug, Deserialize)]
        struct Holder {
            it: Address,
        }
        let read = |value: &str| toml::from_str::<Holder>(&format!("it = {value}")).map(|holder| holder.it);
        let one = read("\"nats://u:p@a:1, nats://u:p@b:2\"").unwrap();
        let list = read("[\"nats://u:p@a:1\", \" nats://u:p@b:2\"]").unwrap();
        assert_eq!(list, one);
        assert_eq!(list.servers().collect::<Vec<_>>(), ["nats://u:p@a:1", "nats://u:p@b:2"]);
        assert_eq!(read("[\"nats://a\"]").unwrap(), Address::from("nats://a"));
        for (wrong, word) in [
            ("[]", "is empty"),
            ("[\"nats://u:12345,@a\"]", "%2C"),
            ("[12345]", "quotation marks"),
            ("[\"nats://a\", [\"u:12345@b\"]]", "quotation marks"),
            ("{ a = 12345 }", "quotation marks"),
        ] {
            let error = read(wrong).unwrap_err();
            assert!(error.message().contains(word) && !error.message().contains("12345"), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_password_is_neither_formatted_nor_serialized_nor_told_of_in_an_error() {
        let secret = Secret::from("geheim");
        let all = format!("{secret} {secret:?} {}", toml::Value::try_from(&secret).unwrap());
        assert!(!all.contains("geheim") && all.matches(HIDDEN).count() == 3, "{all}");
        assert_eq!((Secret::default().to_string().as_str(), secret.exposed()), ("", "geheim"));
        #[derive(Debug, Deserialize)]
        struct Holder {
            #[expect(dead_code, reason = "only the error is looked at")]
            it: Secret,
        }
        for value in ["12345", "12345.5", "[12345]", "{ a = 12345 }"] {
            let error = toml::from_str::<Holder>(&format!("it = {value}")).unwrap_err();
            assert!(!error.message().contains("12345") && error.message().contains("password"), "{error}");
        }
    }
}
