"""Other people's tools with a judge in them; each module needs the package it is named after."""
