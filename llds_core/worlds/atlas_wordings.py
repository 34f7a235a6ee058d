"""Wordings and small tables of the atlas world: text only, no logic."""

CONTINENTS = {
    "AF": "Africa",
    "AN": "Antarctica",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}

# Names that readers use for a country beside the one GeoNames prints.
COUNTRY_ALIASES = {
    "AE": ("UAE", "Emirates"),
    "BO": ("Plurinational State of Bolivia",),
    "CD": ("DR Congo", "DRC", "Congo-Kinshasa"),
    "CG": ("Congo", "Congo-Brazzaville"),
    "CI": ("Côte d'Ivoire",),
    "CN": ("People's Republic of China", "PRC"),
    "CV": ("Cape Verde",),
    "CZ": ("Czech Republic",),
    "GB": ("UK", "Great Britain", "Britain"),
    "IR": ("Islamic Republic of Iran",),
    "KP": ("DPRK",),
    "KR": ("Republic of Korea",),
    "LA": ("Lao PDR",),
    "MK": ("Macedonia",),
    "MM": ("Burma",),
    "NL": ("Netherlands", "Holland"),
    "PS": ("Palestine",),
    "RU": ("Russian Federation",),
    "SZ": ("Swaziland",),
    "TL": ("East Timor",),
    "TR": ("Türkiye",),
    "TZ": ("United Republic of Tanzania",),
    "US": ("USA", "United States of America", "America"),
    "VA": ("Vatican City", "Holy See"),
    "VN": ("Viet Nam",),
}

CITY_PASSAGES = (
    "{name} is a city in {country}. It has {population} inhabitants.",
    "{name} is a city of {population} people in {country}.",
    "{name}, with {population} inhabitants, is a city in {country}.",
)

QUESTIONS = {
    "city-country": (
        "which country is {name} in?",
        "in which country would you find {name}?",
        "{name} is a city of which country?",
        "what country does {name} belong to?",
    ),
    "city-capital": (
        "what is the capital of the country where {name} is?",
        "which city is the capital of the country of {name}?",
        "name the capital of the country that {name} is in.",
        "what is the capital city of the nation that {name} belongs to?",
    ),
    "city-currency": (
        "what currency is used in the country where {name} is?",
        "which currency would you pay with in {name}?",
        "name the currency of the country that {name} is in.",
        "what money do people use in {name}?",
    ),
    "city-continent": (
        "which continent is {name} in?",
        "on which continent would you find {name}?",
        "{name} is a city of which continent?",
        "name the continent that {name} is in.",
    ),
    "country-capital": (
        "what is the capital of {name}?",
        "which city is the capital of {name}?",
        "name the capital of {name}.",
        "what is the capital city of {name}?",
    ),
    "country-currency": (
        "what is the currency of {name}?",
        "which currency does {name} use?",
        "name the currency of {name}.",
        "what money is used in {name}?",
    ),
    "country-continent": (
        "which continent is {name} in?",
        "on which continent is {name}?",
        "{name} is a country of which continent?",
        "name the continent that {name} belongs to.",
    ),
}
