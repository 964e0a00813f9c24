"""What clients of the endpoint send and get: fields, checks, errors, and the OpenAPI document. Without torch."""
