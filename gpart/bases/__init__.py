"""Which model an adapter was trained on: loading it by the name that a user, or an adapter's manifest, has for it."""
