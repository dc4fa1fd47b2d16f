"""The concepts that Nano-IconQA asks about, and the drawing names each icon family uses for them.

Each line of the table reads ``concept: drawing names``; a drawing name is a glyph's name in a font's charmap without
its weight and fill (see :func:`commit_tuning.data.icons.style_free`), and ``family!name`` holds for that family alone.
Concepts that families draw in unlike ways, that cannot be told apart at about 20 pixels, or that are mere text
formatting are not in the table.
"""

from __future__ import annotations

_TABLE = """
airplane: plane airplane airplane-tilt plane-up
anchor: anchor anchor-simple
at sign: at
bank: bank university landmark building-columns
barcode: barcode barcode-box
bar chart: bar-chart chart-bar msc!graph chart-column bar-chart-2
basketball: basketball basketball-ball
battery: battery battery-full
bed: bed hotel-bed
bell: bell bell-simple ri!notification-2 ri!notification-3 ri!notification-4
bicycle: bicycle bike
bookmark: bookmark bookmark-simple
open book: book-open book-open-page
briefcase: briefcase
bug: bug bug-2 bug-beetle
bus: bus bus-alt
cake: cake cake-2 cake-3 cake-candles birthday-cake
calculator: calculator
calendar: calendar calendar-2 calendar-blank calendar-days
camera: camera camera-3 device-camera
car: car car-side car-simple
check: check
clipboard: clipboard
clock: clock time
cloud: cloud
coffee: coffee mug-hot mug-saucer ri!cup
computer: desktop desktop-classic monitor computer device-desktop screen vm
credit card: credit-card bank-card
crown: crown vip-crown crown-simple
database: database
door: door door-open door-closed
drop: drop tint droplet mdi!water
envelope: envelope mail email envelope-simple
eraser: eraser
eye: eye eye-open
film: film film-strip filmstrip
filter: fa!filter ri!filter ei!filter msc!filter mdi!filter funnel
fingerprint: fingerprint fingerprint-simple
fire: fire flame
first aid: first-aid-kit medkit fa!first-aid kit-medical suitcase-medical medical-bag
flag: flag flag-2
flask: flask msc!beaker
folder: folder folder-simple folder-close
fork: restaurant utensils fork-knife silverware-fork-knife cutlery
gamepad: gamepad game-controller gamepad-variant controller-classic
gas pump: gas-station gas-pump
gear: gear cog settings-gear
ghost: ghost ghost-2
gift: gift gift-2
globe: globe global earth globe-simple web
graduation cap: graduation-cap mortar-board mdi!school
hashtag: hashtag hash pound
headphones: headphones headphone headphones-simple headphones-alt
heart: heart heart-2 heart-3 heart-straight
hourglass: hourglass hourglass-half hourglass-simple hourglass-end timer-sand
house: house home house-simple house-chimney home-simple home-2 home-3 home-4 home-5 home-7
image: image image-2 picture photo image-square
key: key key-2
keyboard: keyboard keyboard-box
laptop: laptop macbook
leaf: leaf
lifebuoy: lifebuoy life-ring life-bouy
light bulb: lightbulb light-bulb bulb lightbulb-filament idea
lightning: lightning bolt lightning-bolt zap mdi!flash ri!flashlight bolt-lightning
link: link link-simple link-horizontal
list: list list-ul list-bullets list-unordered format-list-bulleted
lock: lock lock-2 lock-simple
magic wand: ei!magic fa!magic wand magic-wand auto-fix wand-magic
magnet: magnet magnet-straight
magnifying glass: search search-2 magnifying-glass magnify
map: map map-2 map-trifold
map pin: map-pin map-pin-2 map-marker location location-dot location-pin map-marker-alt
medal: medal medal-2
megaphone: megaphone bullhorn megaphone-simple
microphone: mic mic-2 microphone
mobile phone: smartphone cellphone mobile device-mobile mobile-screen mobile-alt mobile-button mobile-screen-button
moon: moon moon-clear weather-night moon-waning-crescent
mouse: mouse computer-mouse mouse-simple
music: music music-2 music-note music-notes music-note-simple music-notes-simple
newspaper: newspaper
paint brush: brush paintbrush fa!paint-brush ph!paint-brush ph!paint-brush-broad
palette: palette symbol-color
paper plane: paper-plane send-plane send-plane-2 paper-plane-tilt paper-plane-right send
paperclip: paperclip paper-clip attachment attachment-2 paperclip-horizontal
pause: pause
pencil: pencil pencil-simple msc!edit
percent: percent percentage
phone: phone phone-alt
pie chart: pie-chart chart-pie pie-chart-2 chart-pie-slice
pill: pill capsule capsules
play: play
plus: plus add
power: power ri!shut-down fa!power-off ei!off
printer: printer print
pushpin: pushpin pushpin-2 push-pin thumbtack pin push-pin-simple
puzzle piece: puzzle puzzle-piece
qr code: qr-code qrcode
question mark: question question-mark help question-sign
recycle: recycle
robot: robot hubot
rocket: rocket rocket-2 rocket-launch
rss: rss rss-simple
ruler: ruler ruler-2 symbol-ruler ruler-horizontal ruler-vertical
scales: scales scales-3 balance-scale scale-balanced law scale-balance
scissors: scissors scissors-2 cut content-cut
shield: shield shield-alt
ship: ship ship-2 boat ferry
shirt: t-shirt t-shirt-2 tshirt shirt tshirt-crew
shopping bag: shopping-bag shopping-bag-2 shopping-bag-3 bag-shopping shopping-bag-open mdi!shopping
shopping cart: shopping-cart shopping-cart-2 cart cart-shopping shopping-cart-simple
smiley: smiley emotion smile emoticon-happy face-smile emoticon emotion-happy
soccer ball: soccer-ball ri!football futbol futbol-ball soccer
speaker: volume-up speaker-high volume-high unmute speaker-simple-high
star: star star-full
store: store store-2 store-3 storefront shop
sun: sun white-balance-sunny
table: table ri!table-2
tag: tag price-tag price-tag-2 price-tag-3 tag-simple
terminal: terminal console
thermometer: thermometer thermometer-simple thermometer-half temperature-half temp-hot temp-cold
thumbs down: thumbs-down thumb-down thumbsdown thumbsdown-filled
thumbs up: thumbs-up thumb-up thumbsup thumbsup-filled
ticket: ticket
train: train train-regional train-simple
trash: trash trash-can delete-bin delete-bin-2 delete-bin-5 delete-bin-6 trashcan mdi!delete trash-simple trash-alt
trophy: trophy
truck: truck
umbrella: umbrella umbrella-simple
user: user user-3 mdi!account msc!account
video camera: fa!video mdi!video vidicon video-camera facetime-video device-camera-video
wallet: wallet
warning: warning alert triangle-exclamation exclamation-triangle warning-sign
wheelchair: wheelchair wheelchair-accessibility
wifi: wifi wifi-high
wrench: wrench ri!tools
cross: ri!close mdi!close msc!close ei!remove fa!times fa!xmark ph!x
"""


def parse_table(text: str) -> dict[str, tuple[str, ...]]:
    """Read the table: one concept per line, ``concept: name name ...``; returns concept -> names, sorted."""
    table: dict[str, tuple[str, ...]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        concept, _, names = line.partition(":")
        table[concept.strip()] = tuple(names.split())
    return dict(sorted(table.items()))


CONCEPT_NAMES: dict[str, tuple[str, ...]] = parse_table(_TABLE)
"""Concept -> the base names (optionally ``family!name``) that draw it."""
