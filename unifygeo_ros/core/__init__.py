"""What every other package uses: errors, records, settings, geodesy. It imports none of them."""
