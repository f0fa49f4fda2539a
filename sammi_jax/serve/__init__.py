"""A model behind HTTP: a JSON API and a web page.

From a request to its answer: `app` (the server), `guard` (what holds for every request), `api` and
`page` (its two faces), `service` (what both ask for), `worker` (one job at a time), `limits`,
`metrics`.
"""
