"""What scenarios came to, for programs and for people: JSON, one HTML file, a chart."""
