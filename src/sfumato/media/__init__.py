"""Images and video as soft-token inputs. Needs the `media` extra, asked for only when used."""
